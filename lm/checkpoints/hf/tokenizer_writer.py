"""Writes what transformers reads beside the weights to encode, decode and generate as in training:
the tokenizer, its special tokens and their ids, the chat template, generation settings.

The settings of a checkpoint that a run began with are kept; a run from scratch has its own.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lm.checkpoints.hf.gguf import is_gguf, read_tokenizer_fields
from lm.checkpoints.hf.gguf_tokenizer import named_tokens
from lm.checkpoints.hf.tokenizer import MADE_OF
from lm.config import Config
from lm.data import ByteTokenizer, Tokenizer
from lm.data.files import read_json_if_exists
from lm.data.make_tokenizer import SPECIALS
from lm.data.tokenizer_config import read_config, token_text
from lm.data.tokenizer_json import byte_characters
from lm.tasks import predicts_tokens
from lm.tasks.layout import Layout

# Names of special tokens in tokenizer_config.json, and the first that a tokenizer has of these.
_KNOWN = {
    "bos_token": ("<s>", "<|begin_of_text|>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}
_IN_CONFIG = ("bos_token", "eos_token", "pad_token")  # whose ids stand in config.json
_AS_IN_GGUF = ("add_bos_token", "add_eos_token", "chat_template")
# What names files or code of the machine that wrote it.
_LOCAL = ("auto_map", "name_or_path", "tokenizer_file", "vocab_file", "merges_file")
_IDS = ("bos_token_id", "eos_token_id")
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"


def base_settings(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its tokenizer, as in tokenizer_config.json; with "chat_template",
    wherever it stood, and without special tokens that are no texts.
    """
    if is_gguf(folder):
        found = read_tokenizer_fields(folder)
        return named_tokens(found) | {k: found[k] for k in _AS_IN_GGUF if k in found}
    settings = read_config(folder)
    odd = [k for k in (*_KNOWN, "eos_token") if token_text(settings.get(k)) is None]
    return {k: v for k, v in settings.items() if k not in (*_LOCAL, *odd) and v is not None}


def write_tokenizer(
    folder: Path,
    config: Config,
    tokenizer: Tokenizer,
    base: Mapping[str, Any] | None,
    layout: Layout | None = None,
) -> dict[str, int]:
    """Writes the tokenizer's files; of characters there are none.

    Args:
      folder: where to.
      config: of the run.
      tokenizer: its tokenizer.
      base: `base_settings` of the checkpoint that the run began with; None: it began from scratch.
      layout: of a task's rows: texts get what stands around them there.

    Returns:
      The ids of special tokens for config.json.
    """
    text = tokenizer.json
    if text is None and tokenizer.vocab_size == ByteTokenizer.vocab_size:
        text = _byte_tokenizer_json(tokenizer)
    if text is None:
        return {} if base is not None else dict.fromkeys(_IDS, tokenizer.end)
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(text)
    settings = _settings(config, tokenizer, base, backend)
    opens, closes = (settings.pop(f"add_{name}_token", None) for name in ("bos", "eos"))
    if layout is None:
        text = _with_bos(backend, settings, opens, closes) or text
    else:
        text = _with_row_template(backend, layout)
        if config.model.architecture == "decoder":
            padding = _padding_candidates(settings, tokenizer, backend)
            settings["pad_token"] = padding[0] if padding else None
    ids = {
        f"{name}_id": backend.token_to_id(token)
        for name in _IN_CONFIG
        if (token := token_text(settings.get(name))) is not None
    }
    settings.setdefault("eos_token", backend.id_to_token(tokenizer.end))
    settings |= {} if tokenizer.json is not None else {MADE_OF: tokenizer.name}
    template = settings.pop("chat_template", None)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    if isinstance(template, str):
        (folder / _TEMPLATE).write_text(template, "utf-8")
    elif template is not None:  # several, by name
        settings["chat_template"] = template
    _write(folder / "tokenizer_config.json", settings)
    names = (*_KNOWN, "eos_token")
    tokens = {k: token_text(v) for k, v in settings.items() if k in names and v is not None}
    _write(folder / "special_tokens_map.json", tokens)
    return {name: number for name, number in ids.items() if number is not None}


def write_generation(
    folder: Path, config: Config, base: Path | None, hf_config: Mapping[str, Any]
) -> None:
    """Writes generation_config.json of a model that writes: its base's, or what ends a text."""
    if config.model.architecture == "encoder" or not predicts_tokens(config):
        return
    kept = {} if base is None or is_gguf(base) else read_json_if_exists(base / _GENERATION)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    own = {name: hf_config[name] for name in names if hf_config.get(name) is not None}
    _write(folder / _GENERATION, kept or own)


def _byte_tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer.json whose tokens are bytes; those that UTF-8 lacks are special tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    assert tokenizer.mask is not None
    numbers = (tokenizer.end, tokenizer.mask, *tokenizer.sentinels)
    specials = dict(zip(numbers, SPECIALS, strict=False))
    vocabulary = dict(enumerate(byte_characters())) | specials
    made = Backend(models.BPE({name: byte for byte, name in vocabulary.items()}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials.values()))
    return made.to_str()


def _settings(
    config: Config,
    tokenizer: Tokenizer,
    base: Mapping[str, Any] | None,
    backend: tokenizers.Tokenizer,
) -> dict[str, Any]:
    """tokenizer_config.json; without a base, END opens and closes texts, as in training."""
    end = backend.id_to_token(tokenizer.end)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if config.model.num_token_types < 2:
        inputs.remove("token_type_ids")
    # Whatever the base's own class would make of the files: this one reads tokenizer.json.
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    most = {"model_max_length": config.model.max_seq_len}
    if base is None:
        named: dict[str, Any] = dict.fromkeys(_IN_CONFIG, end)
        if tokenizer.mask is not None:
            named["mask_token"] = backend.id_to_token(tokenizer.mask)
        named |= {"add_bos_token": True, "add_eos_token": config.model.architecture == "encoder"}
        return {**most, **named, **own}
    known = {
        name: token
        for name, tokens in _KNOWN.items()
        for token in tokens[::-1]
        if backend.token_to_id(token) is not None
    }
    return {**most, **known, **base, **own}


def _with_bos(
    backend: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    opens: bool | None,
    closes: bool | None,
) -> str | None:
    """The tokenizer.json made to open texts as `add_bos_token` wants it; None where it does so."""
    from tokenizers.processors import TemplateProcessing

    bos, eos = (token_text(settings.get(name)) for name in ("bos_token", "eos_token"))
    if opens is None or bos is None:
        return None
    eos, closes = eos or bos, bool(closes and eos)
    specials = {name: backend.token_to_id(name) for name in (bos, eos)}
    if None in specials.values():  # no tokens of its own: nothing was trained with them
        return None
    ids = backend.encode("a").ids
    if (ids[:1] == [specials[bos]]) == opens and (not closes or ids[-1] == specials[eos]):
        return None
    before, after = f"{bos}:0 " if opens else "", f" {eos}:0" if closes else ""
    first, second = (f"{before}{text}:0{after}" for text in ("$A", "$B"))
    backend.post_processor = TemplateProcessing(
        single=first,
        pair=f"{first} {second.replace(':0', ':1')}",
        special_tokens=list(specials.items()),
    )
    return backend.to_str()


def _padding_candidates(
    settings: Mapping[str, Any], tokenizer: Tokenizer, backend: tokenizers.Tokenizer
) -> list[str]:
    """What can pad a text that is read at its last token: special tokens that close no text."""
    others = (tokenizer.mask, *tokenizer.sentinels)
    spare = [backend.id_to_token(token) for token in others if token is not None]
    names = (token_text(settings.get("pad_token")), *spare)
    return [name for name in names if name not in (None, backend.id_to_token(tokenizer.end))]


def _with_row_template(backend: tokenizers.Tokenizer, layout: Layout) -> str:
    """The tokenizer.json that puts around one text or two what a task's rows have there."""
    from tokenizers.processors import TemplateProcessing

    first, second = -1, -2  # stand for the texts
    forms, specials = [], {}
    for texts in ([first], [first, second]):
        row = layout.joined([np.array([text]) for text in texts])
        real = row["segments"] > 0
        parts = []
        for token, kind in zip(row["inputs"][real], row["types"][real], strict=True):
            name = {first: "$A", second: "$B"}.get(int(token)) or backend.id_to_token(int(token))
            parts.append(f"{name}:{kind}")
            if token >= 0:
                specials[name] = int(token)
        forms.append(parts)
    backend.post_processor = TemplateProcessing(
        single=forms[0], pair=forms[1], special_tokens=list(specials.items())
    )
    return backend.to_str()


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
