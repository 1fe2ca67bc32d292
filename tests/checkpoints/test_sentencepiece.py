"""A folder with only a SentencePiece model encodes as SentencePiece and transformers do."""

import json

import pytest

pytest.importorskip("sentencepiece")

import sentencepiece

from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.data import load_subword
from lm.errors import UserError
from tests.checkpoints.sentencepiece_models import ASKED, LLAMA, trained


def folder_of(tmp_path, name, model, model_type, **settings):
    (tmp_path / name).write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def read(folder):
    return load_subword(str(find_tokenizer(folder, folder / "cache")))


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.parametrize(
    ("kind", "options", "name", "model_type"),
    [("unigram", T5, "spiece.model", "t5"), ("bpe", LLAMA, "tokenizer.model", "llama")],
)
def test_tokens_are_those_of_sentencepiece_and_of_transformers(
    kind, options, name, model_type, tmp_path
):
    model = trained(kind, **options)
    folder = folder_of(tmp_path, name, model, model_type)
    ours = read(folder)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = [ids.tolist() for ids, *_ in ours.encode_batch(ASKED)]
    assert found == [processor.encode(text) for text in ASKED]
    if kind == "bpe":  # nothing is unknown, and nothing is normalised
        assert [ours.decode(ids) for ids in found] == ASKED
    transformers = pytest.importorskip("transformers")
    classes = {"t5": "T5Tokenizer", "llama": "LlamaTokenizer"}
    theirs = getattr(transformers, classes[model_type]).from_pretrained(folder)
    # Theirs takes <s> for the token, and of BPE a space at the beginning for the one that it adds.
    plain = [text for text in ASKED if text[:1] not in ("<", " ") or kind == "unigram"]
    wanted = [theirs(text, add_special_tokens=False)["input_ids"] for text in plain]
    assert [ids.tolist() for ids, *_ in ours.encode_batch(plain)] == wanted
    assert ours.vocab_size == len(theirs) and ours.end == theirs.eos_token_id
    if model_type == "t5":
        assert len(ours.sentinels) == 100
        assert ours.sentinels[0] == theirs.convert_tokens_to_ids("<extra_id_0>")


def test_albert_lowers_and_strips_accents_first(tmp_path):
    symbols = {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "user_defined_symbols": ["[MASK]"]}
    model = trained("unigram", **symbols)
    ours = read(folder_of(tmp_path, "spiece.model", model, "albert"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    (encoded,) = ours.encode_batch(["The Ünï ``fox''"])
    assert encoded.ids.tolist() == processor.encode('the uni "fox"')
    names = [processor.id_to_piece(i) for i in (ours.start, ours.end, ours.mask)]
    assert names == ["[CLS]", "[SEP]", "[MASK]"]


def test_a_model_of_another_kind_and_a_damaged_one_are_refused(tmp_path):
    folder = folder_of(tmp_path, "spiece.model", trained("char", vocab_size=60), "t5")
    with pytest.raises(UserError, match="whole words or characters as pieces"):
        read(folder)
    (folder / "spiece.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="is damaged, or no SentencePiece model"):
        read(folder)
