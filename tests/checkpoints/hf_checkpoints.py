"""Seeded random checkpoints of every family, as transformers makes them, shared by these tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from configs import default
from lm.checkpoints.hf import open_checkpoint
from lm.model.embedding import Embedding
from lm.model.layers import Block, Stack
from lm.model.transformer import Batch
from lm.training.build_model import build_model

B, L, V = 2, 9, 67
_ENCODER = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
_LLAMA = _ENCODER | {"num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-5}
_T5 = {
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
_BART = {
    "vocab_size": V,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 20,
    "scale_embedding": True,
}
# Name -> class of transformers and what its configuration is given.
CASES = {
    "bert": ("BertForMaskedLM", _ENCODER),
    "bert, tanh gelu, untied": (
        "BertForMaskedLM",
        _ENCODER | {"hidden_act": "gelu_new", "tie_word_embeddings": False},
    ),
    "roberta": ("RobertaForMaskedLM", _ENCODER | {"type_vocab_size": 1}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {
            "vocab_size": V,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 20,
        },
    ),
    "albert": ("AlbertForMaskedLM", _ENCODER | {"embedding_size": 12, "hidden_act": "gelu_new"}),
    "electra": ("ElectraForMaskedLM", _ENCODER | {"embedding_size": 12}),
    "electra, not factorised": ("ElectraForMaskedLM", _ENCODER | {"embedding_size": 32}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20},
    ),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "llama, tied": ("LlamaForCausalLM", _LLAMA | {"tie_word_embeddings": True, "head_dim": 10}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA | {"tie_word_embeddings": True}),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5 1.1": (
        "T5ForConditionalGeneration",
        _T5
        | {
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "initializer_factor": 0.3,
        },
    ),
    "bart": ("BartForConditionalGeneration", _BART),
}
ENCODERS = [name for name, (kind, _) in CASES.items() if "MaskedLM" in kind]
DECODERS = [name for name, (kind, _) in CASES.items() if "CausalLM" in kind or "GPT2" in kind]
BOTH = [name for name, (kind, _) in CASES.items() if "Conditional" in kind]


def theirs(name, noise=0.1):
    """A model of transformers, all of whose parameters matter."""
    kind, settings = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    return model


def save(name, folder, noise=0.1, **options):
    """Its folder, and the model itself."""
    model = theirs(name, noise)
    model.save_pretrained(folder, **options)
    return folder, model


@dataclasses.dataclass
class Loaded:
    """A checkpoint as a model of ours."""

    config: object
    model: object
    params: object
    fresh: list
    origin: str

    def apply(self, batch, method=None, **options):
        return self.model.apply({"params": self.params}, batch, method=method, **options)

    def states(self, batch):
        """Hidden states of each side as transformers has them, after the embedding and after each
        layer, the last with its final norm; and log-probabilities.
        """

        def wanted(module, name):
            return name == "__call__" and isinstance(module, Embedding | Block | Stack)

        log_probs, found = self.apply(
            batch, "log_probs", capture_intermediates=wanted, mutable=["intermediates"]
        )
        found = jax.tree.map(np.asarray, found["intermediates"])
        sides = {"stack": "inputs", "encoder": "encoder_inputs"}
        states = {side: _states(found, side, sides[side]) for side in sides.keys() & found.keys()}
        return states, np.asarray(log_probs)


def _states(found, side, inputs):
    layers = {k: v["__call__"][0] for k, v in found[side].items() if "layer" in k}
    if stacked := layers.keys() & {"layers", "shared_layer"}:
        blocks = list(layers[stacked.pop()])
    else:
        blocks = [layers[f"layer_{i}"] for i in range(len(layers))]
    return [found[inputs]["__call__"][0], *blocks[:-1], found[side]["__call__"][0]]


def load(folder, **settings) -> Loaded:
    """Our model of a folder, on one device."""
    config = default.get_config()
    config.update_from_flattened_dict(settings)
    checkpoint = open_checkpoint(f"hf:{folder}")
    config = checkpoint.with_model(config)
    model = build_model(config, config.data.vocab_size)
    keys = {"params": jax.random.key(0), "softmax": jax.random.key(1)}
    start = batch_of(tokens(), memory=config.model.architecture == "encoder_decoder")
    init = functools.partial(model.init, keys, start, False, method="loss")
    shapes = flatten_dict(jax.eval_shape(init)["params"], sep="/")
    found = checkpoint.find({name: leaf.shape for name, leaf in shapes.items()}, config)
    fresh = sorted(shapes.keys() - found.keys())
    flat = flatten_dict(init()["params"], sep="/") if fresh else {}
    device = SingleDeviceSharding(jax.devices()[0])
    for name, source in found.items():
        leaf = jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=device)
        flat[name] = checkpoint.read(source, leaf)
    return Loaded(
        config, model, unflatten_dict(flat, sep="/"), fresh, checkpoint.describe(found, config)
    )


def tokens(seed=0, length=L):
    return np.random.default_rng(seed).integers(3, V, (B, length)).astype(np.int32)


def padding(length=L):
    """The second row is three shorter."""
    return (np.arange(length) < np.array([[length], [length - 3]])).astype(np.int32)


def batch_of(inputs, real=None, types=None, memory=False) -> Batch:
    """A batch of rows, one document each; with a memory, inputs are both sides'."""
    real = jnp.ones_like(inputs) if real is None else jnp.asarray(real)
    places = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    inputs = jnp.asarray(inputs)
    batch = Batch(inputs, inputs, real.astype(jnp.float32), real, places, token_types=types)
    if memory:
        batch = batch.replace(
            encoder_inputs=inputs, encoder_segments=real, encoder_positions=places
        )
    return batch
