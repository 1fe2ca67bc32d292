"""Reads a GGUF file of llama.cpp as a checkpoint of transformers: its metadata give a config.json,
its tensors have their names there, and quantized numbers are read as the floats that they encode.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from lm.checkpoints.hf.tensor_mapping import Tensor
from lm.errors import UserError

_TOKENIZER = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
ARCHITECTURES = ("llama", "qwen2")
_MOST_VALUES = 4_000_000  # of metadata; a tokenizer of 256,000 tokens has some 1.5 million
# Keys of config.json, and the file's below the name of its architecture.
KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}
_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_NAMES_IN_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True)
class _GgufTensor:
    """A tensor of a file, [out, in] or [features], as float32.

    Attributes:
      stored: the reader's tensor, whose axes are named from the last to the first.
      heads: into how many heads the rows are parted whose halves lie interleaved, as llama.cpp
        rotates Llama's queries and keys; 0 where the rows are in order.
    """

    stored: Any
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.stored.shape[::-1])

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        rows, *others = index
        if self.heads:
            pairs = self._read(slice(None)).reshape(self.heads, -1, 2, *self.shape[1:])
            return pairs.swapaxes(1, 2).reshape(self.shape)[index]
        return self._read(rows)[(slice(None), *others)]

    def _read(self, rows: slice) -> np.ndarray:
        from gguf.quants import dequantize

        try:
            return dequantize(self.stored.data[rows], self.stored.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"{self.stored.name} is stored as {self.stored.tensor_type.name}, which the "
                "package gguf cannot read; take a file of another quantization, such as Q8_0"
            ) from None


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, be it there or not; a folder's never is."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What its config.json would say, and its tensors by their names there; they stay on disk.

    Raises:
      UserError: where the file is damaged, a part of several, or of another architecture, or the
        package `gguf` is not installed.
    """
    reader = _open(path)
    found = _contents(path, reader, lambda key: not key.startswith(_TOKENIZER))
    kind = found.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path} is of architecture {kind!r}, not {' or '.join(ARCHITECTURES)}")
    if found.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{path} is one of {found['split.count']} parts; join them (llama-gguf-split --merge)"
        )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    try:
        hf_config = _settings(found, kind, stored)
    except (IndexError, KeyError) as error:
        raise UserError(f"{path} lacks {error.args[0]}; it is damaged, fetch it again") from None
    interleaved, tensors = interleaved_heads(hf_config), {}
    for name, tensor in stored.items():
        part = name.rpartition(".")[0].rpartition(".")[2]
        tensors[_hf_name(name)] = _GgufTensor(tensor, interleaved.get(part, 0))
    return hf_config, tensors


def read_tokenizer_fields(path: Path) -> dict[str, Any]:
    """What a file says of its tokenizer, without the names' beginning; {}: it has none."""
    fields = _contents(path, _open(path), lambda key: key.startswith((_TOKENIZER, _TEMPLATE)))
    found = {k.removeprefix(_TOKENIZER): v for k, v in fields.items() if k != _TEMPLATE}
    if found and _TEMPLATE in fields:
        found["chat_template"] = fields[_TEMPLATE]
    _check_tokens(path, found)
    return found


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise UserError(f"{path} is a GGUF file; to read it, pip install gguf") from None

    class Reader(GGUFReader):
        """Raises where a value lies beyond the file's end, and for more of them than any file has:
        `GGUFReader` makes an object of each element of an array, as many as the file says.
        """

        values = 0

        def _get(self, offset: int, dtype: DTypeLike, count: int = 1, *more: Any, **by: Any) -> Any:
            self.values += 1
            if self.values > _MOST_VALUES:
                raise ValueError(f"it has more than {_MOST_VALUES:,} values")
            found = super()._get(offset, dtype, count, *more, **by)
            if len(found) < count:
                raise ValueError("it says more than it holds")
            return found

    try:
        return Reader(path)
    except Exception as error:  # of any kind, as the reader looks where the file tells it to
        raise _damaged(path, error) from None


def _contents(path: Path, reader: Any, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The values of the wanted fields, by name."""
    try:
        return {k: field.contents() for k, field in reader.fields.items() if wanted(k)}
    except Exception as error:  # likewise
        raise _damaged(path, error) from None


def _damaged(path: Path, cause: Exception | str) -> UserError:
    return UserError(
        f"{path} is truncated or damaged ({' '.join(str(cause).split())}); fetch it again"
    )


def _list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _check_tokens(path: Path, found: Mapping[str, Any]) -> None:
    """Raises UserError where what a file says of its tokenizer is of another kind."""
    tokens = found.get("tokens", [])
    for key in ("tokens", "merges"):
        if key in found and not _list_of(found[key], str):
            raise _damaged(path, f"its {key} are no texts")
    if not isinstance(found.get("chat_template", ""), str):
        raise _damaged(path, "its chat_template are no texts")
    for key in ("scores", "token_type"):
        if key in found and not (
            _list_of(found[key], int | float) and len(found[key]) == len(tokens)
        ):
            raise _damaged(path, f"its {key} are not a number for each token")
    for key, value in found.items():
        if key.endswith("_token_id") and not isinstance(value, int):
            raise _damaged(path, f"its {key} is {value!r:.40}, and no number")


def _settings(found: Mapping[str, Any], kind: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: found.get(f"{kind}.{name}") for key, name in KEYS.items()}
    hf_config = {key: value for key, value in own.items() if value is not None}
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
        if key not in hf_config:
            raise KeyError(f"{kind}.{KEYS[key]}")
    hf_config.setdefault("num_key_value_heads", hf_config["num_attention_heads"])
    scaling = found.get(f"{kind}.rope.scaling.type", "none")
    if "rope_freqs.weight" in stored:
        scaling = "llama3"
    if scaling != "none":
        hf_config["rope_scaling"] = {"rope_type": scaling}
    hf_config["model_type"] = kind
    hf_config["vocab_size"] = int(stored["token_embd.weight"].shape[-1])
    hf_config["attention_bias"] = _has_biases(stored, ".attn_")
    hf_config["mlp_bias"] = _has_biases(stored, ".ffn_")
    hf_config["tie_word_embeddings"] = "output.weight" not in stored
    return hf_config


def _has_biases(names: Iterable[str], part: str) -> bool:
    return any(part in name and name.endswith(".bias") for name in names)


def interleaved_heads(hf_config: Mapping[str, Any]) -> dict[str, int]:
    """The parts of a layer whose halves of heads lie interleaved, and into how many heads."""
    if hf_config["model_type"] != "llama":
        return {}
    keys = hf_config.get("num_key_value_heads") or hf_config["num_attention_heads"]
    return {"attn_q": hf_config["num_attention_heads"], "attn_k": keys}


def gguf_name(name: str) -> str:
    """The name in a file of a tensor of transformers, without the body's prefix."""
    first, *rest = name.split(".")
    if first == "layers":
        layer, *part, kind = rest
        known = {other: own for own, other in _NAMES_IN_LAYERS.items()}
        return f"blk.{layer}.{known['.'.join(part)]}.{kind}"
    known = {other: own for own, other in _NAMES.items()}
    return ".".join((known[first], *rest))


def _hf_name(name: str) -> str:
    first, *rest = name.split(".")
    if first == "blk" and len(rest) == 3 and rest[1] in _NAMES_IN_LAYERS:
        layer, part, kind = rest
        return f"layers.{layer}.{_NAMES_IN_LAYERS[part]}.{kind}"
    return ".".join((_NAMES.get(first, first), *rest))
