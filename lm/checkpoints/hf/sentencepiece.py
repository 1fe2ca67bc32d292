"""Makes a tokenizer.json of a SentencePiece model. Its pieces and scores, which the package
`sentencepiece` reads from its file, are normalised, cut and joined by `tokenizers` as it does.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError

UNIGRAM, BPE = 1, 2  # kinds of models; the file's own numbers, as are those of pieces
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
_SPACE = "▁"  # stands for a space in pieces
_NAMED = ("[CLS]", "[SEP]", "[MASK]", "<mask>")  # special where a file has them as words of a user


def from_sentencepiece(files: Sequence[Path], settings: Mapping[str, Any]) -> Any:
    """The tokenizer of a SentencePiece model.

    Args:
      files: spiece.model or tokenizer.model alone.
      settings: those of tokenizer_config.json, and "model_type" of config.json: T5 has sentinels
        behind the file's pieces, and ALBERT lowers and strips accents before the file's own
        normalisation.

    Raises:
      UserError: `sentencepiece` is not installed, or the file is damaged or of another kind.
    """
    (file,) = files
    return from_model(file, _read(file), settings)


def from_model(file: Path, found: Any, settings: Mapping[str, Any]) -> Any:
    """The tokenizer of what a `file` holds, as SentencePiece's ModelProto has it; see above."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    kind = settings.get("model_type")
    trained, normal = found.trainer_spec, found.normalizer_spec
    pieces = [(piece.piece, piece.score) for piece in found.pieces]
    sentinels = [f"<extra_id_{i}>" for i in range(settings.get("extra_ids", 100))][::-1]
    sentinels = sentinels if kind == "t5" else []
    pieces += [(sentinel, 0.0) for sentinel in sentinels]
    tokenizer = Tokenizer(_model(file, trained, pieces))
    steps: list[Any] = []
    if kind == "albert":
        steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not settings.get("keep_accents", False):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
        if settings.get("do_lower_case", True):
            steps.append(normalizers.Lowercase())
    if normal.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
    if normal.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if normal.add_dummy_prefix:  # also before a space that the text itself begins with
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    if trained.split_by_whitespace and trained.model_type == UNIGRAM:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    joins = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if normal.add_dummy_prefix:
        joins.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(joins)
    for piece in found.pieces:
        if piece.type in (CONTROL, USER_DEFINED):
            special = piece.type == CONTROL or piece.piece in _NAMED
            token = AddedToken(piece.piece, normalized=False, special=special)
            tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    tokenizer.add_special_tokens(sentinels)
    return tokenizer


def _read(file: Path) -> Any:
    try:
        format: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError:
        raise UserError(
            f"{file} is a SentencePiece model; to read it, pip install sentencepiece protobuf"
        ) from None
    model = format.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception:  # protobuf's own kind, whose name has moved between releases
        raise UserError(f"{file} is damaged, or no SentencePiece model; fetch it again") from None
    if not model.pieces:
        raise UserError(f"{file} is damaged, or no SentencePiece model; fetch it again")
    return model


def _model(file: Path, trained: Any, pieces: list[tuple[str, float]]) -> Any:
    from tokenizers import models

    if trained.model_type == UNIGRAM:
        return models.Unigram(pieces, trained.unk_id, trained.byte_fallback)
    if trained.model_type != BPE:
        raise UserError(f"{file} has whole words or characters as pieces; use unigram or BPE")
    numbers = {piece: number for number, (piece, _) in enumerate(pieces)}
    return models.BPE(
        numbers,
        _merges(pieces, numbers),
        unk_token=trained.unk_piece,
        fuse_unk=True,
        byte_fallback=trained.byte_fallback,
    )


def _merges(pieces: list[tuple[str, float]], numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the best-scored piece first."""
    merges = []
    for piece, score in pieces:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        found = [pair for pair in halves if pair[0] in numbers and pair[1] in numbers]
        merges += [(-score, numbers[left], numbers[right], left, right) for left, right in found]
    return [(left, right) for *_, left, right in sorted(merges)]
