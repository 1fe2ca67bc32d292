"""Small tokenizers of the kinds in use, which are made and not trained."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lm.data import load_subword

WORDS = ("the", "in", "it", "it's", "yes", "user", "assistant", "system")


def merged(words):
    """Merges that make these words of their characters, from left to right, and all pieces."""
    merges, pieces = {}, dict.fromkeys("".join(words))
    for word in words:
        for size in range(2, len(word) + 1):
            merges[word[: size - 1], word[size - 1]] = None
            pieces[word[:size]] = None
    return list(merges), list(pieces)


def byte_level(*special, around=None, words=WORDS, normalizer=None):
    """As GPT-2's and Qwen's: bytes, these words with and without a space before them, and special
    tokens, whose ids come first.
    """
    merges, pieces = merged([*(f"Ġ{word}" for word in words), *words])
    names = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])
    backend = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = around
    backend.add_special_tokens(list(special))
    return backend


def byte_fallback(*special, around=None, words=WORDS, prepend="normalizer"):
    """As Llama's: pieces with a sign for a space, which also stands before a text's first word, and
    bytes for the characters that have no piece.

    Args:
      prepend: what puts it there: "normalizer" (also behind special tokens), or the scheme of a
        pre-tokenizer, "first", "always" or "never".
    """
    merges, pieces = merged([*(f"▁{word}" for word in words), *words])
    count = (f"<0x{byte:02X}>" for byte in range(256))
    names = dict.fromkeys([*special, "<unk>", *count, *pieces, *"abcdefghijklmnopqrstuvwxyz|_<>"])
    backend = tokenizers.Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    joins = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*joins, decoders.Strip(" ", 1, 0)])
    if prepend == "normalizer":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.post_processor = around
    backend.add_special_tokens([*special, "<unk>"])
    return backend


def template(single, pair, *names):
    """A post-processor that puts special tokens of the first ids around texts."""
    ids = [(name, i) for i, name in enumerate(names)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def folder_of(folder, backend, **config):
    """The tokenizer of a folder that this writes: a tokenizer.json and a tokenizer_config.json."""
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_subword(str(folder / "tokenizer.json"))


def names_of(tokenizer, ids):
    """The pieces behind token ids."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.json)
    return [backend.id_to_token(int(i)) for i in ids]
