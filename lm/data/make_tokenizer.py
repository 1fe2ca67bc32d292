"""Makes tokenizers by name, and trains BPE, WordPiece and Unigram ones. All three work on UTF-8
bytes, so that no text is unknown to them, and have the same special tokens.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lm.data.subword_tokenizer import SubwordTokenizer, load_subword
from lm.data.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer
from lm.data.tokenizer_config import FILES
from lm.data.tokenizer_json import byte_characters
from lm.errors import UserError

SPECIALS = ("<|end|>", "<|mask|>", *(f"<|sentinel_{i}|>" for i in range(32)))
UNKNOWN = "<|unknown|>"  # asked for by two algorithms, and never used: every byte is known
CONTINUES = "…"  # marks a piece that does not begin a word; not a byte character, unlike ##
# Bytes of a word; longer ones, such as base64 or a genome, are cut. WordPiece and training BPE take
# time quadratic in a word's length, and training Unigram overflows its stack.
LONGEST_WORD = 256
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
_LEAST = {  # every byte (for WordPiece twice, also as a continuation) and the special tokens
    "bpe": 256 + len(SPECIALS),
    "wordpiece": 2 * 256 + len(SPECIALS) + 1,
    "unigram": 256 + len(SPECIALS) + 1,
}


def check_tokenizer(name: str, vocab_size: int | None) -> None:
    """Says at once, before any text or file is read, whether such a tokenizer can be made.

    Args:
        name: `bytes`, `characters`, a name of `ALGORITHMS`, or a path ending in `tokenizer.json`.
        vocab_size: number of tokens; may be None for `bytes` and for `tokenizer.json`.

    Raises:
        UserError: the name is unknown, there is no such file, or the vocabulary size does not fit.
    """
    if name == "bytes":
        if vocab_size not in (None, ByteTokenizer.vocab_size):
            raise UserError(
                f"tokenizer bytes has 256 tokens, not {vocab_size}; set vocab_size=256, or name a "
                "checkpoint's own tokenizer.json in config.data.tokenizer"
            )
    elif name == "characters":
        if vocab_size is None or not 2 <= vocab_size <= 1_000_000:
            raise UserError(
                f"tokenizer characters needs a vocab_size of 2 to 1,000,000, not {vocab_size}"
            )
    elif name in ALGORITHMS:
        if vocab_size is None or vocab_size < _LEAST[name]:
            raise UserError(
                f"tokenizer {name} is trained to vocab_size, at least {_LEAST[name]} (every byte "
                f"and the special tokens), not {vocab_size}; use for example 8192"
            )
    elif name.endswith("tokenizer.json"):
        if not Path(name).expanduser().is_file():
            raise UserError(f"there is no tokenizer {name}; give the path of a tokenizer.json")
    else:
        raise UserError(
            f"unknown tokenizer {name!r}; use bytes, characters, {', '.join(ALGORITHMS)}, or a "
            "path ending in tokenizer.json"
        )


def tokenizer_fingerprint(name: str) -> str:
    """Changes whenever the tokenizer of that name may have: for a file, with its content and that
    of the files beside it.
    """
    if name.endswith("tokenizer.json"):
        file = Path(name).expanduser()
        files = [file, *(file.with_name(beside) for beside in FILES)]
        contents = [each.read_bytes() if each.is_file() else b"" for each in files]
        return hashlib.sha256(b"\0".join(contents)).hexdigest()
    return name


def make_tokenizer(name: str, vocab_size: int | None, texts: Iterable[str]) -> Tokenizer:
    """Makes the tokenizer; reads `texts` only if it must be trained.

    BPE and WordPiece give the same tokenizer for the same texts in the same order. Unigram does
    not quite: the library seeds it in the order of a hash table, which differs from one process to
    the next. Keep its `tokenizer.json`, and name that, to hold it fixed.

    Args:
        name: `bytes`, `characters`, a name of `ALGORITHMS`, or a path ending in `tokenizer.json`.
        vocab_size: as `check_tokenizer` allows; a trained tokenizer has exactly as many tokens.
        texts: documents of the training split.

    Raises:
        UserError: what `check_tokenizer` raises, or too little text for so many tokens.
    """
    check_tokenizer(name, vocab_size)
    if name == "bytes":
        return ByteTokenizer()
    if name.endswith("tokenizer.json"):
        return load_subword(name, vocab_size)
    assert vocab_size is not None  # checked above
    if name == "characters":
        return CharacterTokenizer(vocab_size)
    return _trained(name, vocab_size, texts)


def untrained_tokenizer(name: str, vocab_size: int | None) -> Tokenizer:
    """A tokenizer with the size and special tokens of the one that `make_tokenizer` makes, without
    text to train it on: for programs that are compiled and not run. Text becomes bytes.

    Raises:
        UserError: what `check_tokenizer` raises.
    """
    check_tokenizer(name, vocab_size)
    if name not in ALGORITHMS:
        return make_tokenizer(name, vocab_size, ())
    text = ["a"]  # without any, the scores of unigram are not numbers
    return SubwordTokenizer(_train(name, vocab_size, text)[0], name=name, vocab_size=vocab_size)


def warn_of_long_words(documents: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The texts of named documents, to train a tokenizer on; the first that has a word too long to
    be kept whole is named, as such words are hardly text, and slow.
    """
    warned = False
    for name, text in documents:
        if not warned and (found := _LONG_WORD.search(text)):
            warned = True
            print(
                f"{name} has a word of {len(found[0]):,} letters ({found[0][:20]}...); tokenizers "
                f"that are trained cut words at {LONGEST_WORD} bytes",
                file=sys.stderr,
                flush=True,
            )
        yield text


def open_tokenizer(spec: dict[str, Any], json_text: str | None) -> Tokenizer:
    """The tokenizer that a manifest records, from its spec and the content of `tokenizer.json`."""
    if spec["name"] == "characters":
        return CharacterTokenizer(spec["vocab_size"])
    return ByteTokenizer() if json_text is None else SubwordTokenizer.of_spec(spec, json_text)


def _trained(name: str, vocab_size: int, texts: Iterable[str]) -> SubwordTokenizer:
    text, found = _train(name, vocab_size, texts)
    if found != vocab_size:
        raise UserError(
            f"tokenizer {name} finds only {found} tokens in the training text, fewer than "
            f"vocab_size={vocab_size}; use a vocab_size well below {found}, or more text"
        )
    return SubwordTokenizer(text, name=name)


def _train(name: str, vocab_size: int | None, texts: Iterable[str]) -> tuple[str, int]:
    """The tokenizer.json of a tokenizer that was trained on texts, and its number of tokens."""
    from tokenizers import Regex, pre_tokenizers, processors

    tokenizer, trainer = ALGORITHMS[name](
        vocab_size=vocab_size, initial_alphabet=byte_characters(), show_progress=False
    )
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, parts])
    tokenizer.train_from_iterator(texts, trainer)
    end = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    config = json.loads(tokenizer.to_str())
    config["added_tokens"] = [
        token for token in config["added_tokens"] if not token["content"].startswith(CONTINUES)
    ]
    return json.dumps(config, ensure_ascii=False), len(config["model"]["vocab"])


def _bpe(**options: Any) -> tuple[Any, Any]:
    """Byte-pair encoding: merges the most frequent pair (Sennrich et al. 2016, 1508.07909)."""
    from tokenizers import Tokenizer, models, trainers

    return Tokenizer(models.BPE()), trainers.BpeTrainer(special_tokens=list(SPECIALS), **options)


def _wordpiece(**options: Any) -> tuple[Any, Any]:
    """WordPiece: the longest piece first (Wu et al. 2016, 1609.08144; Devlin et al. 2019)."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(
        models.WordPiece(
            vocab={},
            unk_token=UNKNOWN,
            max_input_chars_per_word=LONGEST_WORD,
            continuing_subword_prefix=CONTINUES,
        )
    )
    trainer = trainers.WordPieceTrainer(
        # Continuations are listed among the special tokens, since the trainer else adds only those
        # it meets, in the order of a hash table: bytes would be unknown, and no run like the last.
        special_tokens=[*SPECIALS, UNKNOWN, *(CONTINUES + byte for byte in byte_characters())],
        continuing_subword_prefix=CONTINUES,
        **options,
    )
    return tokenizer, trainer


def _unigram(**options: Any) -> tuple[Any, Any]:
    """Unigram language model over pieces (Kudo 2018, 1804.10959)."""
    from tokenizers import Tokenizer, models, trainers

    special = [*SPECIALS, UNKNOWN]
    trainer = trainers.UnigramTrainer(special_tokens=special, unk_token=UNKNOWN, **options)
    return Tokenizer(models.Unigram()), trainer


ALGORITHMS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
}
