"""Writes a decoder as a GGUF file of llama.cpp, in float32, with its tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.checkpoints.hf.checkpoint_writer import tensors
from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.gguf import ARCHITECTURES, KEYS, gguf_name, interleaved_heads
from lm.checkpoints.hf.gguf_tokenizer import WORD_PATTERNS
from lm.checkpoints.hf.sentencepiece import CONTROL, NORMAL
from lm.config import Config
from lm.data import ByteTokenizer, Tokenizer
from lm.errors import UserError
from lm.tasks import predicts_tokens


def write_gguf(
    path: Path,
    config: Config,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    family: Family,
    special_ids: Mapping[str, int],
) -> None:
    """Writes a model of llama.cpp's architectures.

    Args:
      path: of the file, beside whose tokenizer.json it is written.
      config: of the run.
      params: its parameters; additions are merged.
      tokenizer: its tokenizer.
      family: of its model.
      special_ids: "bos_token_id", ... by name.

    Raises:
      UserError: the model or its tokenizer is none that llama.cpp has here.
    """
    check_architecture(config, family)
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError(
            "--format=gguf needs gguf, which is not installed; pip install gguf"
        ) from None
    tokens = _tokenizer_fields(path.with_name("tokenizer.json"), tokenizer, special_ids)
    hf_config = family.config_to_hf(config, tokenizer.vocab_size)
    writer = gguf.GGUFWriter(path, family.model_type)
    for key, name in KEYS.items():
        value, full = hf_config.get(key), f"{family.model_type}.{name}"
        if isinstance(value, float):
            writer.add_float32(full, value)
        elif value is not None:
            writer.add_uint32(full, value)
    heads = interleaved_heads(hf_config)
    for name, array in tensors(config, params, family):
        short = gguf_name(name.removeprefix(family.prefix))
        number = heads.get(short.split(".")[-2], 0)
        if number:
            halves = array.reshape(number, 2, -1, *array.shape[1:]).swapaxes(1, 2)
            array = np.ascontiguousarray(halves.reshape(array.shape))
        writer.add_tensor(short, array)
    writer.add_vocab_size(tokenizer.vocab_size)
    for add, value in tokens(writer):
        add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_architecture(config: Config, family: Family) -> None:
    """Raises UserError where llama.cpp has no such model here."""
    if family.model_type not in ARCHITECTURES or not predicts_tokens(config):
        what = "a head for labels" if config.task.name else f"a {family.model_type}"
        raise UserError(f"gguf has no form here for {what}, only for {' or '.join(ARCHITECTURES)}")


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises UserError where llama.cpp has no such tokenizer here: it has bytes, and byte-level BPE
    whose words are cut in a known way.
    """
    is_bytes = tokenizer.json is None and tokenizer.vocab_size == ByteTokenizer.vocab_size
    if not is_bytes and (tokenizer.json is None or _words_of(json.loads(tokenizer.json)) is None):
        raise UserError(
            f"gguf has no form here for the tokenizer {tokenizer.name}, only for bytes and "
            f"byte-level BPE that cuts words as {', '.join(WORD_PATTERNS)}"
        )


def _tokenizer_fields(path: Path, tokenizer: Tokenizer, ids: Mapping[str, int]) -> Any:
    """What puts the tokenizer of a tokenizer.json into a file."""
    from tokenizers import Tokenizer as Backend

    backend, told = Backend.from_file(str(path)), json.loads(path.read_text("utf-8"))
    if not told["model"][
        "merges"
    ]:  # llama.cpp has no tokenizer of bytes: it is given their numbers
        return lambda writer: [(writer.add_tokenizer_model, "no_vocab")]
    special = {each["id"] for each in told["added_tokens"] if each["special"]}
    size = tokenizer.vocab_size
    names = [backend.id_to_token(i) or f"<|unused_{i}|>" for i in range(size)]
    types = [CONTROL if i in special else NORMAL for i in range(size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in told["model"]["merges"]]
    opens = bool(backend.encode("a").ids[:1] == [ids.get("bos_token_id")])
    template = path.with_name("chat_template.jinja")

    def fields(writer: Any) -> list[tuple[Any, Any]]:
        found = [
            (writer.add_tokenizer_model, "gpt2"),
            (writer.add_tokenizer_pre, _words_of(told)),
            (writer.add_token_list, names),
            (writer.add_token_types, types),
            (writer.add_token_merges, merges),
            (writer.add_add_bos_token, opens),
        ]
        adds = {
            "bos_token_id": writer.add_bos_token_id,
            "eos_token_id": writer.add_eos_token_id,
            "pad_token_id": writer.add_pad_token_id,
        }
        found += [(add, ids[name]) for name, add in adds.items() if name in ids]
        if template.exists():
            found.append((writer.add_chat_template, template.read_text("utf-8")))
        return found

    return fields


def _words_of(told: Mapping[str, Any]) -> str | None:
    """How a tokenizer.json cuts text into words, by llama.cpp's name; None: in no known way."""
    model, cut = told["model"], told["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [cut])
    if model["type"] != "BPE" or steps[-1].get("type") != "ByteLevel":
        return None
    if not model["merges"] or (len(steps) == 1 and steps[-1].get("use_regex", True)):
        return "gpt-2"
    patterns = {pattern: name for name, pattern in WORD_PATTERNS.items() if pattern}
    first = steps[0].get("pattern", {}).get("Regex")
    return patterns.get(first) if len(steps) == 2 else None
