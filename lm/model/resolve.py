"""Makes the typed config of the model from the groups of keys that describe it."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from lm.attention import ATTENTIONS
from lm.config import Config, chosen_options, frozen, typed
from lm.model.config import (
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    Options,
    StackConfig,
    TransformConfig,
)

# So many layers are unrolled where config.model.scan says nothing.
_UNROLLED = 4


def model_config(config: Config) -> ModelConfig:
    """The model that a config describes.

    Raises:
      UserError: the config lacks a key.
    """
    model = config.model
    embedding = typed(
        EmbeddingConfig,
        config,
        embedding_dim=model.embedding_dim or model.d_model,
        norm=typed(NormConfig, config) if model.embedding_norm else None,
    )
    kinds = {name: _attention(config, group) for name, group in attention_groups(config).items()}
    transform = typed(TransformConfig, config, embedding_dim=embedding.embedding_dim)
    options = chosen_options(config.output, ("head", "tied", "token_chunk_size"))
    own = kinds["attention"]
    return typed(
        ModelConfig,
        config,
        embedding=embedding,
        encoder=_stack(config, kinds.get("encoder_attention", own), None)
        if model.architecture == "encoder_decoder"
        else None,
        stack=_stack(config, own, kinds.get("cross_attention")),
        transform=transform if model.head_transform else None,
        head=typed(HeadConfig, config, options=_pairs(options)),
    )


def scans_layers(model: Config) -> bool:
    """Whether layers that have parameters of their own are steps of a scan, by config.model."""
    return model.num_layers > _UNROLLED if model.scan is None else model.scan


def attention_groups(config: Config) -> dict[str, Config]:
    """The keys of each kind of attention that the model has, by the name of their group.

    What `encoder_attention` and `cross_attention` leave at None is as in `attention`. Where they
    name another mechanism or weighting, no option is: options belong to what they were set for.
    """
    groups = {"attention": config.attention}
    if config.model.architecture == "encoder_decoder":
        for name in ("encoder_attention", "cross_attention"):
            own = chosen_options(config[name], ())
            group = ConfigDict(config.attention.to_dict())
            parts = ("mechanism", "weighting")
            if any(own.get(part, group[part]) != group[part] for part in parts):
                for key in group:
                    if key not in (*parts, "query_chunk_size"):
                        group[key] = () if key in ("learn", "anneal") else None
            group.update(own)
            groups[name] = group
    return groups


def attention_options(group: Config) -> dict[str, Any]:
    """The options that a group of attention's keys sets: the mechanism's and its weighting's."""
    fixed = ("mechanism", "weighting", "query_chunk_size", "learn", "anneal")
    return chosen_options(group, fixed)


def _stack(config: Config, own: AttentionConfig, cross: AttentionConfig | None) -> StackConfig:
    mlp_dim = config.model.mlp_dim or 4 * config.model.d_model
    feed_forward = typed(FeedForwardConfig, config, mlp_dim=mlp_dim, out_init_std=own.out_init_std)
    block = typed(
        BlockConfig,
        config,
        attention=own,
        cross_attention=cross and dataclasses.replace(cross, cross=True),
        feed_forward=feed_forward,
    )
    return typed(StackConfig, config, block=block, scan=scans_layers(config.model))


def _attention(config: Config, group: Config) -> AttentionConfig:
    """The kind of attention that a group of keys describes."""
    model, chosen = config.model, attention_options(group)
    own = ATTENTIONS[group.mechanism].own_options()
    options = {"horizon": model.max_seq_len} if "horizon" in own else {}
    options |= {name: chosen.pop(name) for name in sorted(own & set(chosen))}
    depth = (2 * model.num_layers) ** -0.5 if model.depth_scaled_init else 1.0
    return typed(
        AttentionConfig,
        {"model": model, "attention": group},
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_dim=model.head_dim or model.d_model // model.num_heads,
        rope_theta=model.rope_theta if model.position_embedding == "rotary" else None,
        bias=model.bias if model.qkv_bias is None else model.qkv_bias,
        options=_pairs(options),
        weighting_options=_pairs(chosen),
        cross=False,
        out_init_std=model.init_std * depth,
    )


def _pairs(options: dict[str, Any]) -> Options:
    return tuple((key, frozen(value)) for key, value in options.items())
