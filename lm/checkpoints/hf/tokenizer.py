"""Finds the tokenizer of a checkpoint: its tokenizer.json, or one made of older files, vocab.txt
(WordPiece), vocab.json and merges.txt (byte-level BPE), a SentencePiece model, or a GGUF file.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from lm.checkpoints.hf.gguf import is_gguf, read_tokenizer_fields
from lm.checkpoints.hf.gguf_tokenizer import WORD_PATTERNS, from_gguf, special_token_settings
from lm.checkpoints.hf.sentencepiece import from_sentencepiece
from lm.data.cache import built
from lm.data.files import read_json_if_exists, read_text
from lm.data.tokenizer_config import read_settings
from lm.errors import UserError

# In a tokenizer_config.json that was exported here: the tokenizer that the file beside it is of.
MADE_OF = "made_of_tokenizer"
_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>")
_FORMAT = 3  # raise it when what is made of the same files changes
# By model_type, what transformers' classes put around a text and around two.
_PAIRED = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
_POST_PROCESSORS = {
    "albert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "bart": _PAIRED,
    "roberta": _PAIRED,
    "t5": ("$A </s>", "$A </s> $B </s>"),
}
# Their defaults where tokenizer_config.json lacks a key.
_DEFAULTS: dict[str | None, dict[str, Any]] = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
}


def find_tokenizer(folder: Path, cache: Path) -> Path | None:
    """The path of the tokenizer.json of a folder, made in `cache` where it has older files; or of a
    GGUF file, beside which it lies, or of which it is made.

    None where the folder has no tokenizer, or that of bytes, which is written for others.

    Raises:
      UserError: where it has one that cannot be read here.
    """
    beside = (folder.parent if is_gguf(folder) else folder) / "tokenizer.json"
    if read_json_if_exists(beside.with_name("tokenizer_config.json")).get(MADE_OF) == "bytes":
        return None
    if beside.exists():
        return beside
    if is_gguf(folder):
        if not (found := read_tokenizer_fields(folder)):
            return None
        make = functools.partial(from_gguf, folder, found)
        return _cached_tokenizer(cache, repr(found).encode(), make, special_token_settings(found))
    for names, make in _BUILDERS.items():
        files = [folder / name for name in names]
        if all(file.exists() for file in files):
            settings = read_json_if_exists(folder / "tokenizer_config.json")
            kind = read_json_if_exists(folder / "config.json").get("model_type")
            settings["model_type"] = kind
            known = _DEFAULTS.get(kind, {}) | read_settings(folder)
            content = b"".join(file.read_bytes() for file in files)
            content += json.dumps([names, settings, known], sort_keys=True).encode()
            make = functools.partial(_with_post_processor, make, files, settings)
            return _cached_tokenizer(cache, content, make, known)
    return None


def _with_post_processor(
    make: Callable[..., Any], files: list[Path], settings: dict[str, Any]
) -> Any:
    """The tokenizer made of files, with its kind's special tokens around texts."""
    from tokenizers import processors

    try:
        tokenizer = make(files, settings)
    except UserError:
        raise
    except Exception as error:  # of any kind, as `tokenizers` raises
        names = " and ".join(file.name for file in files)
        raise UserError(
            f"{files[0].parent} has {names}, which make no tokenizer "
            f"({' '.join(str(error).split())[:200]}); fetch it again"
        ) from None
    if settings["model_type"] in _POST_PROCESSORS:
        single, pair = _POST_PROCESSORS[settings["model_type"]]
        names = {name for name in pair.replace(":1", "").split() if name[0] != "$"}
        ids = [(name, tokenizer.token_to_id(name)) for name in sorted(names)]
        if all(number is not None for _, number in ids):
            tokenizer.post_processor = processors.TemplateProcessing(single, pair, ids)
    return tokenizer


def _cached_tokenizer(
    cache: Path, content: bytes, make: Callable[[], Any], settings: dict[str, Any]
) -> Path:
    """The path of a tokenizer.json of this content, made unless it is there, with its settings."""
    content += f" {_FORMAT}".encode()

    def fill(folder: epath.Path) -> None:
        known = {key: value for key, value in settings.items() if key != "added_tokens"}
        known["added_tokens_decoder"] = settings.get("added_tokens", {})
        (folder / "tokenizer_config.json").write_text(json.dumps(known))
        (folder / "tokenizer.json").write_text(make().to_str())

    folder = built(epath.Path(cache) / hashlib.sha256(content).hexdigest()[:16], fill)
    return Path(folder) / "tokenizer.json"


def _wordpiece(files: list[Path], settings: dict[str, Any]) -> Any:
    """BERT's: cleaned text cut at spaces and punctuation, then the longest pieces first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = read_text(files[0]).split("\n")
    vocabulary = {word: place for place, word in enumerate(words) if word or place < len(words) - 1}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([name for name in _BERT_SPECIALS if name in vocabulary])
    if "[SEP]" in vocabulary and "[CLS]" in vocabulary:
        ends = [("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])]
        tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _byte_level(files: list[Path], settings: dict[str, Any]) -> Any:
    """GPT-2's: pairs of byte characters merged in order; Qwen's composes characters first."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(*map(str, files)))
    spaced = settings.get("add_prefix_space", False)
    if pattern := WORD_PATTERNS.get(settings["model_type"]):
        tokenizer.normalizer = normalizers.NFC()
        cuts = pre_tokenizers.Split(Regex(pattern), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cuts, level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_special_tokens([name for name in _BPE_SPECIALS if name in vocabulary])
    return tokenizer


_BUILDERS = {
    ("vocab.txt",): _wordpiece,
    ("vocab.json", "merges.txt"): _byte_level,
    ("spiece.model",): from_sentencepiece,
    ("tokenizer.model",): from_sentencepiece,
}
