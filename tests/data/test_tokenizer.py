"""Every tokenizer gives the text back, counts its bytes, and keeps special tokens out of it."""

import functools
import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from lm.data import ByteTokenizer, Encoded, SubwordTokenizer, load_subword
from lm.data.make_tokenizer import (
    SPECIALS,
    check_tokenizer,
    make_tokenizer,
    open_tokenizer,
    untrained_tokenizer,
)
from lm.data.tokenizer import END_BYTE, MASK_BYTE, SENTINEL_BYTES
from lm.errors import UserError

TRAINED = {"bpe": 400, "wordpiece": 700, "unigram": 400}
TEXTS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps on, and the fox goes home.\n",
    "def softmax(scores):\n    return exp(scores) / exp(scores).sum()\n" * 3,
    "Größe, naïveté, 日本語の文章, Ελληνικά, и русский текст. 🙂🙃\n",
    "unbelievable unbelievably believable believer, sleeping sleeper sleepless 12345 67890 1234\n",
    Path(textwrap.__file__).read_text("utf-8"),
] * 3
# Text with what tokenizers stumble over: spaces, controls, literals, characters of many bytes.
texts = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from([*TEXTS, "  ", "\n\n\t", "###", "…a…", "▁", "x" * 200, "\xa0", "Ġ"]),
        st.sampled_from((*SPECIALS, "<|unknown|>", "</s>", "[SEP]", "[UNK]", "<|endoftext|>")),
    ),
    max_size=6,
).map("".join)


@functools.cache
def made(name):
    """Each trained tokenizer, through its file, as a prepared corpus opens it."""
    trained = make_tokenizer(name, TRAINED.get(name), TEXTS)
    return open_tokenizer(trained.spec, trained.json)


def bert(texts=TEXTS):
    """As BERT's: lower case, no accents, and white space lost."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def t5():
    """As T5's: `</s>` is a piece of the model's vocabulary, where text can reach it."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in "abcdehlorw</>sß"]
    pieces += [("<extra_id_1>", 0.0), ("<extra_id_0>", 0.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([piece for piece, _ in pieces if piece[0] == "<" != piece])
    return tokenizer


def gpt2(**options):
    """As GPT-2's: byte-level, perhaps with a space put before the first word."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


READY_MADE = {
    "bert": bert,
    "t5": t5,
    "gpt2": functools.partial(gpt2, add_prefix_space=False),
    "roberta": functools.partial(gpt2, add_prefix_space=True),
}


@functools.cache
def ready_made(name):
    return SubwordTokenizer(READY_MADE[name]().to_str(), name=f"{name}/tokenizer.json")


@pytest.mark.parametrize("name", ["bytes", *TRAINED])
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_decoding_gives_the_text_back(name, text):
    tokenizer = made(name)
    assert tokenizer.decode(tokenizer.encode_batch([text])[0].ids) == text


@pytest.mark.parametrize("tokenizer", ["bytes", *TRAINED, *READY_MADE])
@settings(max_examples=60, deadline=None)
@given(batch=st.lists(texts, max_size=3))
def test_no_text_becomes_a_special_token_and_every_byte_is_counted(tokenizer, batch):
    tokenizer = ready_made(tokenizer) if tokenizer in READY_MADE else made(tokenizer)
    special = {tokenizer.end, tokenizer.mask, *tokenizer.sentinels}
    for text, encoded in zip(batch, tokenizer.encode_batch(batch), strict=True):
        assert special.isdisjoint(encoded.ids.tolist())
        assert encoded.ids.dtype == np.int32
        assert (encoded.ids < tokenizer.vocab_size).all()
        assert len(encoded.byte_lengths) == len(encoded.ids) + 1
        assert (encoded.byte_lengths >= 0).all()
        assert encoded.byte_lengths.sum() == len(text.encode())


@pytest.mark.parametrize("name", TRAINED)
def test_each_token_counts_the_bytes_it_decodes_to(name):
    tokenizer = made(name)
    assert isinstance(tokenizer, SubwordTokenizer) and tokenizer._pieces is not None
    for ids, byte_lengths, *_ in tokenizer.encode_batch(TEXTS):
        whole = b"".join(tokenizer._pieces[i] for i in ids)
        assert whole.decode() in TEXTS
        assert [len(tokenizer._pieces[i]) for i in ids] + [0] == byte_lengths.tolist()


def test_dropped_spaces_count_for_the_token_after_them_or_for_end():
    tokenizer = ready_made("bert")
    ids, byte_lengths, *_ = tokenizer.encode_batch(["the   dog ü "])[0]
    words = [tokenizer._backend.id_to_token(i) for i in ids]
    ends = np.cumsum(byte_lengths)
    assert words[0] == "the" and byte_lengths[0] == 3
    assert ends[words.index("u")] == len("the   dog ü".encode())
    assert byte_lengths[-1] == 1


def test_reserved_bytes_never_occur_in_utf8():
    reserved = {END_BYTE, MASK_BYTE, *SENTINEL_BYTES}
    used = {byte for code in range(0x110000) if not 0xD800 <= code < 0xE000 for byte in lead(code)}
    assert len(reserved) == 13
    assert reserved.isdisjoint(used)
    assert used | reserved == set(range(256))


def lead(code):
    return chr(code).encode() if code < 0x800 or code % 64 == 0 else b""


def test_bytes_that_are_not_utf8_decode_to_replacement_characters():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([END_BYTE, 0x61, 0xC3, END_BYTE]) == "a\ufffd"
    assert tokenizer.decode([MASK_BYTE]) == "\ufffd"
    bpe = made("bpe")
    split = bpe.encode_batch(["🙃"])[0].ids[:1]
    assert bpe.decode([bpe.end, *split, bpe.sentinels[0]]) == "\ufffd\ufffd"


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_tokenizer_has_the_size_asked_for_and_all_special_tokens(name):
    tokenizer = made(name)
    assert tokenizer.vocab_size == TRAINED[name]
    assert len({tokenizer.end, tokenizer.mask, *tokenizer.sentinels}) == len(SPECIALS)


@pytest.mark.parametrize("name", TRAINED)
def test_an_untrained_tokenizer_has_the_size_and_the_special_tokens_of_a_trained_one(name):
    trained, untrained = make_tokenizer(name, 700, TEXTS), untrained_tokenizer(name, 700)
    assert untrained.vocab_size == trained.vocab_size == 700
    assert [untrained.end, untrained.mask] == [trained.end, trained.mask]
    ids = untrained.encode_batch(["größe"])[0].ids
    assert untrained.decode(ids) == "größe"


def test_training_again_in_another_process_gives_the_same_tokenizers():
    sizes = {name: TRAINED[name] for name in ("bpe", "wordpiece")}
    code = (
        "import sys, json; from lm.data import make_tokenizer; texts = json.load(sys.stdin)\n"
        f"for name, size in {sizes}.items(): print(make_tokenizer(name, size, texts).hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        env={"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.split() == [made(name).hash for name in sizes], done.stderr


def test_too_little_text_for_the_vocabulary_is_an_error():
    with pytest.raises(UserError, match=r"finds only .* tokens"):
        make_tokenizer("bpe", 8192, ["a few words"])


@pytest.mark.parametrize(
    ("name", "vocab_size"),
    [("bytes", 512), ("bpe", None), ("bpe", 257), ("morse", 8), ("none/tokenizer.json", None)],
)
def test_a_tokenizer_that_cannot_be_made_is_an_error_before_any_text_is_read(name, vocab_size):
    with pytest.raises(UserError):
        check_tokenizer(name, vocab_size)


def test_special_tokens_of_ready_made_tokenizers_are_found():
    bert, t5 = ready_made("bert"), ready_made("t5")
    assert bert._backend.token_to_id("[SEP]") == bert.end
    assert bert._backend.token_to_id("[MASK]") == bert.mask
    assert t5.mask is None
    assert t5._backend.token_to_id("</s>") == t5.end
    assert [t5._backend.id_to_token(i) for i in t5.sentinels] == ["<extra_id_0>", "<extra_id_1>"]


def test_literals_that_a_model_knows_as_pieces_are_kept_apart():
    tokenizer = ready_made("t5")
    plain = tokenizer._backend.encode("a</s>b", add_special_tokens=False)
    assert tokenizer.end in plain.ids  # what would happen
    ids, byte_lengths, *_ = tokenizer.encode_batch(["a</s>b"])[0]
    assert tokenizer.end not in ids
    assert byte_lengths.sum() == 6


def test_the_end_token_may_come_from_the_config_beside_the_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer = gpt2()
    tokenizer.add_special_tokens(["<stop>"])
    tokenizer.save(str(path))
    assert load_subword(str(path)).end == tokenizer.token_to_id("<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<stop>"}}')
    loaded = load_subword(str(path))
    assert loaded.end == tokenizer.token_to_id("<stop>")
    assert open_tokenizer(loaded.spec, loaded.json).end == loaded.end


def test_an_end_token_that_is_not_marked_special_is_still_kept_out_of_text():
    config = json.loads(gpt2().to_str())
    config["added_tokens"][0]["special"] = False
    tokenizer = SubwordTokenizer(json.dumps(config), name="x")
    assert tokenizer.end not in tokenizer.encode_batch(["a<|endoftext|>b"])[0].ids


def test_truncation_and_padding_asked_for_by_the_file_are_ignored():
    backend = tokenizers.Tokenizer.from_str(str(ready_made("bert").json))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    text = ["the dog " * 20]
    ids = SubwordTokenizer(backend.to_str(), name="x").encode_batch(text)[0].ids
    assert ids.tolist() == ready_made("bert").encode_batch(text)[0].ids.tolist()


def test_a_file_without_an_end_token_or_with_too_many_tokens_is_an_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE()).save(str(path))
    with pytest.raises(UserError, match="no end-of-document token"):
        load_subword(str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer\.json is no JSON object"):
        load_subword(str(path))
    gpt2(add_prefix_space=False).save(str(path))
    with pytest.raises(UserError, match="has 400 tokens"):
        load_subword(str(path), 399)
    assert load_subword(str(path), 512).vocab_size == 512
    assert load_subword(str(path), 512).decode([511]) == "\ufffd"


def test_equal_tokenizers_have_equal_hashes_and_others_others():
    hashes = {made(name).hash for name in ["bytes", *TRAINED]}
    assert len(hashes) == 1 + len(TRAINED)
    again = [make_tokenizer(name, TRAINED.get(name), TEXTS).hash for name in ("bytes", "bpe")]
    assert again == [made("bytes").hash, made("bpe").hash]
    assert all(len(value) == len(hashlib.sha256().hexdigest()) for value in hashes)
    assert isinstance(made("bytes").encode_batch(["a"])[0], Encoded)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(1, 999_999)))
def test_characters_are_their_numbers_and_every_byte_is_counted(ids):
    tokenizer = open_tokenizer(make_tokenizer("characters", 1_000_000, []).spec, None)
    text = tokenizer.decode(ids)
    (encoded,) = tokenizer.encode_batch([text])
    assert encoded.ids.tolist() == ids
    assert encoded.byte_lengths.sum() == len(text.encode())


@pytest.mark.parametrize("text", ["d", "\0"])
def test_a_character_without_a_token_is_an_error(text):
    with pytest.raises(UserError, match="has no token for U"):
        make_tokenizer("characters", 100, []).encode_batch(["abc" + text])
