"""A folder with the files of a slow tokenizer encodes as transformers does: with the tokens that
were added to it, and with what its kind puts around texts.
"""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

import tokenizers
import transformers

from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.data import load_subword
from lm.data.inline_special_tokens import encode_marked
from lm.tasks.layout import Layout
from tests.small_tokenizers import byte_level

TEXTS = ["the end, isn't it?", "in 2024 they're\n\n x", "the <think>it</think>the", "nai\u0308ve"]


def write(folder, backend, model_type, **files):
    """vocab.json, merges.txt and other files."""
    model = json.loads(backend.to_str())["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder):
    return load_subword(str(find_tokenizer(folder, folder / "cache")))


@pytest.mark.parametrize(
    ("model_type", "theirs"), [("gpt2", "GPT2Tokenizer"), ("qwen2", "Qwen2Tokenizer")]
)
def test_tokens_that_were_added_to_a_slow_tokenizer_keep_their_ids(model_type, theirs, tmp_path):
    backend = byte_level("<|endoftext|>")
    size = backend.get_vocab_size()
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        "0": {"content": "<|endoftext|>", "special": True, **flags},
        size: {"content": "<|im_start|>", "special": True, **flags},
        size + 1: {"content": "<think>", "special": False, **flags},
        size + 2: {"content": "</think>", "special": False, **flags},
    }
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": decoder}
    folder = write(tmp_path, backend, model_type, tokenizer_config=config)
    ours = read(folder)
    wanted = getattr(transformers, theirs).from_pretrained(folder)
    assert ours.vocab_size == len(wanted) and ours.specials.before == ()
    for text, found in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert found.ids.tolist() == wanted(text)["input_ids"]
    (found,) = encode_marked(ours, ["<|im_start|>the"])
    assert found.ids.tolist() == wanted("<|im_start|>the")["input_ids"]
    assert size not in ours.encode_batch(["<|im_start|>"])[0].ids


def test_added_tokens_of_the_first_form_are_read_and_special_where_a_file_says_so(tmp_path):
    backend = byte_level("<|endoftext|>")
    size = backend.get_vocab_size()
    folder = write(
        tmp_path,
        backend,
        "gpt2",
        added_tokens={"<|user|>": size + 1, "<tool>": size + 3},
        special_tokens_map={
            "eos_token": "<|endoftext|>",
            "additional_special_tokens": ["<|user|>"],
        },
    )
    ours = read(folder)
    assert ours.vocab_size == size + 4 and ours.end == 0
    assert ours.markers["<|user|>"].token == size + 1 and "<tool>" not in ours.markers
    assert size + 3 in ours.encode_batch(["a <tool>"])[0].ids
    assert size + 1 not in ours.encode_batch(["a <|user|>"])[0].ids


@pytest.mark.parametrize(
    ("model_type", "theirs"), [("roberta", "RobertaTokenizer"), ("bart", "BartTokenizer")]
)
def test_two_texts_have_two_separators_between_them(model_type, theirs, tmp_path):
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    named = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>"}
    named |= {"unk": "<unk>", "mask": "<mask>"}
    config = {f"{key}_token": name for key, name in named.items()}
    folder = write(tmp_path, byte_level(*names), model_type, tokenizer_config=config)
    ours, wanted = read(folder), getattr(transformers, theirs).from_pretrained(folder)
    one, two = (each.ids for each in ours.encode_batch(["the in", "it"]))
    layout = Layout(20, 0, ours.end, specials=ours.specials)
    for texts, given in (([one], ("the in",)), ([one, two], ("the in", "it"))):
        row = layout.joined(texts)
        real = row["segments"] > 0
        assert row["inputs"][real].tolist() == wanted(*given)["input_ids"]
        assert not np.any(row["types"])


def test_a_bert_separates_two_texts_once_and_counts_the_second(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "in", "it"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    ours, wanted = read(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    one, two = (each.ids for each in ours.encode_batch(["the in", "it"]))
    row = Layout(20, 0, ours.end, specials=ours.specials).joined([one, two])
    real, theirs = row["segments"] > 0, wanted("the in", "it")
    assert row["inputs"][real].tolist() == theirs["input_ids"]
    assert row["types"][real].tolist() == theirs["token_type_ids"]


def test_a_slow_llama_opens_texts_with_its_beginning_unless_it_is_told_not_to(tmp_path):
    pytest.importorskip("sentencepiece")
    from tests.checkpoints.sentencepiece_models import LLAMA, trained

    (tmp_path / "tokenizer.model").write_bytes(trained("bpe", **LLAMA))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read(tmp_path).specials.before == (1,)
    decoder = {"600": {"content": "<|im_start|>", "special": True}}
    config = {"add_bos_token": False, "bos_token": "<s>", "added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = read(tmp_path)
    assert ours.specials.before == () and ours.start == 1
    assert ours.markers["<|im_start|>"].token == 600 and ours.vocab_size == 601
    assert tokenizers.Tokenizer.from_str(str(ours.json)).id_to_token(600) == "<|im_start|>"
