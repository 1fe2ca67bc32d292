"""Which tokenizer does a checkpoint's folder hold? Its tokenizer.json, or one made from the files
that came before: vocab.txt (WordPiece), vocab.json and merges.txt (byte-level BPE), or a
SentencePiece model.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.pretrained.pieces import from_pieces

_BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>")


def find_tokenizer(folder: Path, cache: Path) -> Path | None:
    """The path of the tokenizer.json of a folder, made in `cache` where it has older files.

    None where the folder has no tokenizer.

    Raises:
      UserError: where it has one that cannot be read here.
    """
    if (folder / "tokenizer.json").exists():
        return folder / "tokenizer.json"
    for names, make in _MAKERS.items():
        files = [folder / name for name in names]
        if all(file.exists() for file in files):
            settings = _read(folder / "tokenizer_config.json")
            settings["model_type"] = _read(folder / "config.json").get("model_type")
            content = b"".join(file.read_bytes() for file in files)
            key = hashlib.sha256(content + json.dumps([names, settings], sort_keys=True).encode())
            made = cache / key.hexdigest()[:16] / "tokenizer.json"
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                partial = made.with_name(f"{uuid.uuid4().hex}.partial")
                make(files, settings).save(str(partial))
                os.replace(partial, made)
            return made
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError:
        raise UserError(f"{file} is not JSON; fetch it again") from None


def _wordpiece(files: list[Path], settings: dict[str, Any]) -> Any:
    """BERT's: cleaned text cut at spaces and punctuation, then the longest pieces first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = files[0].read_text("utf-8").split("\n")
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
    """GPT-2's: pairs of byte characters merged in the order of merges.txt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(*map(str, files)))
    spaced = settings.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_special_tokens([name for name in _BPE_SPECIALS if name in vocabulary])
    return tokenizer


_MAKERS = {
    ("vocab.txt",): _wordpiece,
    ("vocab.json", "merges.txt"): _byte_level,
    ("spiece.model",): from_pieces,
    ("tokenizer.model",): from_pieces,
}
