"""Defines a family of checkpoints of transformers: how its config.json gives a config, and which
tensors hold the parameters. Both are tables that are read in either direction.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.checkpoints.hf.tensor_mapping import TensorMapping
from lm.config import Config
from lm.errors import UserError
from lm.model.resolve import model_config
from lm.output import OUTPUTS
from lm.tasks import predicts_tokens

# The config keys that shape a model's function, as they are where a family does not differ.
DEFAULTS: Mapping[str, Any] = {
    "model.embedding_dim": None,
    "model.embedding_norm": False,
    "model.embedding_scale": 1.0,
    "model.num_token_types": 0,
    "model.num_kv_heads": None,
    "model.head_dim": None,
    "model.bias": True,
    "model.qkv_bias": None,
    "model.norm": "layernorm",
    "model.norm_position": "pre",
    "model.position_embedding": "learned",
    "model.rope_theta": 10000.0,
    "model.relative_num_buckets": 32,
    "model.relative_max_distance": 128,
    "model.score_scale": None,
    "model.qk_norm": False,
    "model.share_layers": False,
    "model.head_transform": False,
    "model.pooler": False,
    "output.tied": True,
    "output.bias": None,
    "output.temperature": None,
}
# Activations that are not gated: their names in transformers, and here.
ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class KeyMapping:
    """A config key as a key of config.json.

    Attributes:
      key: the dotted config key.
      hf_key: the key in config.json.
      default: its value where config.json lacks it, which is the family's own.
      values: the values in config.json and here, where these differ.
    """

    key: str
    hf_key: str
    default: Any
    values: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints of one `model_type` of transformers.

    Attributes:
      model_type: its name in config.json.
      architecture: the class of transformers that an exported model has.
      fixed: config keys that are the same in the whole family, where they are not `DEFAULTS`.
      keys: the config keys that differ from model to model.
      mappings: the parameters as parts of tensors, given a config.
      prefix: of the names of the body's tensors, in a checkpoint that also has a head.
      unprefixed: how the names of the head's tensors begin, which have no such prefix.
      required: keys of config.json with the only supported values; absent ones have them.
      extra_config: config keys that follow from several keys of config.json.
      extra_hf_config: the other way round.
      true_if_present, true_if_absent: the config key that is True where the checkpoint has a
        tensor, or lacks it.
      ignored: a pattern of tensors that are no parameters, or another's copy.
      aliases: names of one tensor, of which a checkpoint may have either.
      optional: how the paths of those parameters begin that a checkpoint may lack.
      special_tokens: config.special_tokens, given a config.json; None: END.
    """

    model_type: str
    architecture: str
    fixed: dict[str, Any]
    keys: Sequence[KeyMapping]
    mappings: Callable[[Config], Sequence[TensorMapping]]
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}
    extra_hf_config: Callable[[Config], Mapping[str, Any]] = lambda _: {}
    true_if_present: Mapping[str, str] = dataclasses.field(default_factory=dict)
    true_if_absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: str = "$^"
    aliases: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("transform/", "head/", "pool/")
    special_tokens: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], ...] | None] = lambda _: (
        None
    )

    @property
    def class_name(self) -> str:
        """How the names of its classes in transformers begin, such as Bert."""
        return re.sub(r"(For[A-Z]\w+|LMHeadModel)$", "", self.architecture)

    def full_name(self, tensor: str) -> str:
        """The name of a tensor in a checkpoint that also has a head."""
        return tensor if tensor.startswith(self.unprefixed) else self.prefix + tensor

    def config_from_hf(self, hf_config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The dotted config keys of the model of a config.json, which is found at `where`.

        Raises:
          UserError: where it has an unsupported value.
        """
        for key, wanted in self.required.items():
            if hf_config.get(key, wanted) != wanted:
                raise UserError(
                    f"{where} has {key} = {hf_config[key]!r:.60}, but of {self.model_type} only "
                    f"{wanted!r} is supported; use another checkpoint"
                )
        found = {**DEFAULTS, **self.fixed}
        for each in self.keys:
            value = hf_config.get(each.hf_key, each.default)
            if each.values is not None and value not in each.values:
                raise UserError(
                    f"{where} has {each.hf_key} = {value!r:.60}, which is none of "
                    f"{', '.join(each.values)}; use another checkpoint"
                )
            found[each.key] = each.values[value] if each.values else value
        return {**found, **self.extra_config(hf_config)}

    def config_to_hf(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """The config.json of a model in which `incompatibility` has found none."""
        hf_config: dict[str, Any] = {"model_type": self.model_type, "vocab_size": vocab_size}
        hf_config |= {"architectures": [self.architecture], "torch_dtype": "float32"}
        hf_config |= self.required
        for each in self.keys:
            value = resolved_keys(config)[each.key]
            if each.values is not None:
                value = next(name for name, own in each.values.items() if own == value)
            hf_config[each.hf_key] = value
        return hf_config | dict(self.extra_hf_config(config))

    def incompatibility(self, config: Config) -> str | None:
        """Why a config's model is none of this family; None where it is one."""
        own = resolved_keys(config)
        for each in self.keys:
            if each.values is not None and own[each.key] not in each.values.values():
                return f"config.{each.key} = {own[each.key]!r}"
        try:
            wanted = self.config_from_hf(self.config_to_hf(config, 2), "")
        except UserError as error:
            return str(error)
        family = resolved_keys(with_model_keys(config, wanted))
        for key in wanted.keys() - self.true_if_present.keys() - self.true_if_absent.keys():
            if own[key] != family[key] and (own[key] or family[key]):
                return f"config.{key} = {own[key]!r}, not {family[key]!r}"
        return None


def resolved_keys(config: Config) -> dict[str, Any]:
    """The config keys of model and output by dotted name, with sizes that follow from others."""
    model = model_config(config)
    block, attention = model.stack.block, model.stack.block.attention
    keys = {f"model.{key}": value for key, value in config.model.items()}
    keys |= {f"output.{key}": value for key, value in config.output.items()}
    keys["model.mlp_dim"] = block.feed_forward.mlp_dim
    keys["model.num_kv_heads"] = attention.num_kv_heads
    keys["model.head_dim"] = attention.head_dim
    keys["model.embedding_dim"] = model.embedding.embedding_dim
    keys["model.qkv_bias"] = attention.bias
    return keys


def with_model_keys(config: Config, keys: Mapping[str, Any]) -> Config:
    """A copy of a config with a checkpoint's keys; those that its head lacks are left out, and
    those of all that stands on the stack where a task puts a head for its labels there.
    """
    config = config.copy_and_resolve_references()
    head = OUTPUTS[config.output.head].__dataclass_fields__
    for key, value in keys.items():
        group, name = key.split(".")
        on_top = group == "output" or name in ("head_transform", "pooler")
        if on_top and not predicts_tokens(config):
            continue
        if group != "output" or name == "tied" or name in head:
            config[group][name] = value
    return config
