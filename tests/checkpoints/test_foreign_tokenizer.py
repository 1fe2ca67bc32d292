"""A tokenizer from elsewhere, with anything in its files, is made or is refused in one line."""

import copy
import json
import pathlib

import pytest
import tokenizers

from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.data import load_subword
from lm.errors import UserError

ODD = ["", "x", [], [[1]], {}, {"a": [1]}, None, True, -1, 0, 3, 0.5, 10**13, 10**30, "\ud800"]


def tokenizer_json():
    """A small byte-level tokenizer with everything that such a file may have."""
    vocabulary = {character: i for i, character in enumerate("abcdeĠ")}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary | {"ab": 6}, [("a", "b")]))
    made.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFC()])
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["</s>", "<s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A", "<s> $A </s> $B", [("<s>", 8), ("</s>", 7)]
    )
    made.enable_truncation(64)
    made.enable_padding()
    return json.loads(made.to_str())


SETTINGS = {
    "bos_token": {"content": "<s>", "lstrip": False},
    "eos_token": "</s>",
    "add_bos_token": True,
    "tokenizer_class": "LlamaTokenizer",
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "additional_special_tokens": ["<s>"],
    "added_tokens_decoder": {"9": {"content": "<x>", "special": True}},
}


def places(tree, path=()):
    """The path of everything in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items if isinstance(tree, dict | list) else ():
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(tree, path, value):
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return tree


def loaded(folder, **files):
    """What is made of these files, and whether it encodes; or the one line that refuses it."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    try:
        tokenizer = load_subword(str(folder / "tokenizer.json"))
        tokenizer.encode_batch(["ab cd", "é"])
        return tokenizer
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
        return None


def test_the_file_as_it_is_makes_a_tokenizer(tmp_path):
    made = loaded(tmp_path, tokenizer=tokenizer_json(), tokenizer_config=SETTINGS)
    assert made is not None and made.vocab_size == 10


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_any_value_anywhere_in_a_tokenizer_json_is_one_line(odd, tmp_path):
    whole = tokenizer_json()
    found = [loaded(tmp_path, tokenizer=changed(whole, path, odd)) for path in places(whole)]
    assert found.count(None) > 10


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_any_value_anywhere_beside_it_is_one_line(odd, tmp_path):
    loaded(tmp_path, tokenizer=tokenizer_json())
    for path in places(SETTINGS):
        loaded(tmp_path, tokenizer_config=changed(SETTINGS, path, odd))
    for name in ("tokenizer_config", "special_tokens_map", "added_tokens"):
        loaded(tmp_path, tokenizer_config=SETTINGS, special_tokens_map={}, added_tokens={})
        loaded(tmp_path, **{name: odd})
        loaded(tmp_path, **{name: {"<y>": odd}})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b'{"model": ' * 100_000, "is not JSON"),
        ('{"größe": 1}'.encode("latin-1"), r"tokenizer.json is not UTF-8 \(byte 0xf6 at 4\)"),
        (json.dumps(tokenizer_json()).encode("utf-16"), "tokenizer.json is not UTF-8"),
        (b"{}", "is not a tokenizer.json of Hugging Face"),
        (b"[1]", "is no JSON object"),
    ],
)
def test_a_tokenizer_json_that_is_deep_or_no_utf_8_is_one_line(content, line, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        load_subword(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(error.value)


def test_a_token_far_beyond_the_vocabulary_takes_no_time(tmp_path):
    far = {"added_tokens_decoder": {"9999999": {"content": "<far>", "special": True}}}
    loaded(tmp_path, tokenizer=tokenizer_json(), tokenizer_config=far)
    with pytest.raises(UserError, match="as token 9999999, far beyond its 9 tokens"):
        load_subword(str(tmp_path / "tokenizer.json"))


OLD = {
    "vocab.txt": {"vocab.txt": b"[UNK]\n\xff\xfe"},
    "odd settings": {
        "vocab.txt": b"[UNK]\na\n",
        "tokenizer_config.json": b'{"do_lower_case": "x"}',
    },
    "no unknown": {"vocab.txt": b"a\n\nb", "tokenizer_config.json": b'{"strip_accents": [1]}'},
    "merges": {"vocab.json": b'{"a": 0}', "merges.txt": b"a b c d\n"},
    "vocab.json": {"vocab.json": b'{"a": "x"}', "merges.txt": b"#version\n"},
    "deep": {"vocab.json": b"[" * 100_000, "merges.txt": b"#version\n"},
    "pieces": {"spiece.model": b"\x00\xff" * 40},
    "settings": {"vocab.txt": b"[UNK]\na\n", "tokenizer_config.json": b"[1]"},
}


@pytest.mark.parametrize("name", OLD)
def test_older_vocabularies_that_are_damaged_are_one_line(name, tmp_path):
    for file, content in OLD[name].items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_subword(str(find_tokenizer(tmp_path, tmp_path / "cache")))
    assert "\n" not in str(error.value)


def test_old_vocabularies_become_tokenizers(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "c", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    path = find_tokenizer(tmp_path, tmp_path / "cache")
    assert isinstance(path, pathlib.Path)
    tokenizer = load_subword(str(path))
    (encoded,) = tokenizer.encode_batch(["Ab, cz"])
    assert [words[i] for i in encoded.ids] == ["a", "##b", ",", "[UNK]"]
    assert (tokenizer.vocab_size, tokenizer.mask, tokenizer.end) == (9, 4, 3)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (pairs / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = load_subword(str(find_tokenizer(pairs, tmp_path / "cache")))
    assert tokenizer.encode_batch(["abb"])[0].ids.tolist() == [2, 1]
    (tmp_path / "vocab.txt").rename(tmp_path / "spiece.model")
    with pytest.raises(UserError, match=r"SentencePiece model"):
        find_tokenizer(tmp_path, tmp_path / "cache")
