"""Tokenizers of which a character may be several tokens."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lm.data import ByteTokenizer, SubwordTokenizer


def byte_fallback():
    """As Llama's: characters that it has no piece for are bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁then"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    pieces += map("".join, merges)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    return tokenizer


def byte_level(normalizer):
    """Bytes as tokens, as in Qwen's, of text that is normalised first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|mask|>", "<|sentinel_0|>"])
    return tokenizer


MAKERS = {
    "byte_fallback": byte_fallback,
    "nfc": lambda: byte_level(normalizers.NFC()),
    "nfkc": lambda: byte_level(normalizers.NFKC()),
}


@functools.cache
def made(name):
    if name == "bytes":
        return ByteTokenizer()
    return SubwordTokenizer(MAKERS[name]().to_str(), name=name)


KINDS = ["bytes", *MAKERS]
