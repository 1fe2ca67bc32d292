"""A character may be several tokens, and several characters one: none of them is lost."""

import time

import numpy as np
import pytest
from tokenizers import normalizers

from configs import default
from lm.data import ByteTokenizer, Encoded, SubwordTokenizer
from lm.data.deduplicate import Tally, distinct
from lm.data.packing import Packer
from lm.data.special_tokens import encoder_decoder_tokens
from lm.data.tokenizer import CharacterTokenizer
from lm.errors import UserError
from lm.evaluation.prompting.query_encoder import QueryEncoder
from lm.evaluation.prompting.template import Query
from lm.tasks import build_task
from lm.tasks.layout import Layout
from tests.multibyte_tokenizers import KINDS, byte_fallback, made

MARK = "\u0301"  # a combining acute accent


ANSWERS = [" 🙂", " 😀", "né", f"ne{MARK}", "the ﬁ", "½", "né🙂🙃"]


def read(name, objective, query):
    tokenizer = made(name)
    frame = encoder_decoder_tokens(None, tokenizer.end)
    reader = QueryEncoder(tokenizer, 99, objective, frame, (tokenizer.start,))
    (reading,) = reader([query])
    return reading.rows[0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_every_token_of_an_answer_is_scored(name, answer):
    row = read(name, "causal", Query("the", answer))
    ids = made(name).encode_batch(["the" + answer])[0].ids
    before = len(made(name).encode_batch(["the"])[0].ids)
    assert row.targets.tolist() == ids[before:].tolist()
    assert row.target_positions.tolist() == list(range(before, len(ids)))


@pytest.mark.parametrize("name", KINDS)
def test_answers_that_differ_in_their_last_byte_have_other_targets(name):
    one, other = (read(name, "causal", Query("the", face)).targets.tolist() for face in "🙂🙃")
    assert one[:-1] == other[:-1] and one[-1] != other[-1]


@pytest.mark.parametrize("name", ["bytes", "nfc", "nfkc"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_encoder_hides_the_whole_answer_and_nothing_behind_it(name, answer):
    tokenizer = made(name)
    row = read(name, "masked", Query("the", answer, " net"))
    shown = [token for token in row.inputs.tolist() if token != tokenizer.mask]
    around = [each.ids.tolist() for each in tokenizer.encode_batch(["the", " net"])]
    assert shown == [tokenizer.start, *around[0], *around[1], tokenizer.end]
    assert row.targets.tolist() == tokenizer.encode_batch([answer])[0].ids.tolist()


@pytest.mark.parametrize("objective", ["seq2seq", "span"])
@pytest.mark.parametrize("name", ["bytes", "nfc", "nfkc"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_encoder_decoder_has_a_place_for_each_target(name, objective, answer):
    row = read(name, objective, Query("the", answer, " net"))
    opens = len(row.inputs) - len(row.targets) + 1
    assert row.targets.tolist() == made(name).encode_batch([answer])[0].ids.tolist()
    assert row.target_positions.tolist() == list(range(opens - 1, len(row.inputs)))


def test_the_gap_of_a_span_is_cut_from_the_whole_text():
    spaced = byte_fallback()
    spaced.add_special_tokens(["<extra_id_0>"])
    tokenizer = SubwordTokenizer(spaced.to_str(), name="x")
    whole = tokenizer.encode_batch(["the the net"])[0].ids.tolist()
    reader = QueryEncoder(
        tokenizer, 99, "span", encoder_decoder_tokens(((), (), (0,)), tokenizer.end)
    )
    (row,) = reader([Query("the", " the", " net")])[0].rows
    assert row.targets.tolist() == whole[1:2]
    assert row.encoder_inputs.tolist() == [whole[0], *tokenizer.sentinels, *whole[2:]]


def test_what_stands_behind_a_gap_loses_its_end_where_it_is_too_long():
    tokenizer = ByteTokenizer()
    reader = QueryEncoder(tokenizer, 9, "span", encoder_decoder_tokens(None, tokenizer.end))
    (row,) = reader([Query("ab", "c", "0123456789")])[0].rows
    assert row.encoder_inputs.tolist() == [tokenizer.end, tokenizer.sentinels[0], *b"0123456"]


@pytest.mark.parametrize(
    ("name", "text", "lengths"),
    [
        ("byte_fallback", "the🙂é", [3, 1, 1, 1, 1, 1, 1, 0]),
        ("nfc", "é🙂", [1, 1, 1, 1, 1, 1, 0]),
        ("nfc", f"e{MARK}t", [2, 1, 1, 0]),
        ("nfkc", "ﬁn", [2, 1, 1, 0]),
        ("nfkc", "½", [1, 1, 0, 0, 0, 0]),
        ("nfkc", "", [0]),
    ],
)
def test_a_characters_bytes_are_dealt_out_among_its_tokens(name, text, lengths):
    assert made(name).encode_batch([text])[0].byte_lengths.tolist() == lengths


def test_a_character_that_a_rows_end_cuts_counts_in_both_rows():
    packer = Packer(2, 0)
    packer.add(made("nfc").encode_batch(["🙂é"])[0])
    assert packer.take().bytes.tolist() == [2, 2, 2]


def test_tokens_that_share_a_character_have_the_same_span_and_marks_belong_to_their_letter():
    encoded = made("nfc").encode_batch([f"🙂e{MARK}t"])[0]
    assert encoded.spans.tolist() == [[0, 4]] * 4 + [[4, 7]] * 2 + [[7, 8]]
    assert encoded.within(0, 4).tolist() == [0, 1, 2, 3]
    assert encoded.within(4, 7).tolist() == [4, 5]
    assert ByteTokenizer().encode_batch(["é"])[0].spans.tolist() == [[0, 1], [1, 2]]
    literal = made("nfc").encode_batch(["a<|endoftext|>🙂"])[0]
    assert literal.byte_lengths.sum() == 18 and literal.within(14, 18).tolist() == [14, 15, 16, 17]


@pytest.mark.parametrize("name", KINDS)
def test_a_span_that_answers_holds_all_tokens_of_its_characters(name):
    config = default.get_config()
    config.task.update(name="extractive_qa", text=("question", "context"), doc_stride=8)
    tokenizer, task = made(name), build_task(config)
    context = "the né🙂 then"
    example = {"place": "", "context": context, "label": ["né🙂"], "starts": [4]}
    encoded: list[Encoded] = tokenizer.encode_batch(["then", context])
    layout = Layout(length=64, start=0, end=0)
    (row,) = task.rows(example, encoded, layout, {})
    first, last = row["targets"]
    nothing = np.full((64,), -9.0)
    log_probs = np.stack([nothing, nothing])
    log_probs[0, first], log_probs[1, last] = 0.0, 0.0
    outputs = [{"log_probs": log_probs, "spans": row["spans"]}]
    found = task.predict(example, outputs, ())
    assert found["predicted"] == "né🙂" and found["exact"] == 1.0
    assert row["spans"][last + 1, 0] == 11


@pytest.mark.parametrize("name", [*KINDS, "characters"])
@pytest.mark.parametrize("text", ["a\ud83d", "\udcff" + "b" * 99])
def test_half_a_character_is_one_line(name, text):
    tokenizer = CharacterTokenizer(1000) if name == "characters" else made(name)
    with pytest.raises(UserError, match=r"holds U\+D[8C][3F][DF], which is no character") as error:
        tokenizer.encode_batch(["fine", text])
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_document_with_half_a_character_is_one_line(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"source": "a", "target": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"holds U\+D83D"):
        list(distinct(f"pairs:{tmp_path}/pairs.jsonl", 0.5, Tally()))


def test_a_text_of_many_dropped_marks_takes_time_in_proportion():
    tokenizer = byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    made_of = SubwordTokenizer(tokenizer.to_str(), name="x")
    text = f"n{MARK}{MARK}" * 100_000 + f"{MARK}he"
    began = time.process_time()
    encoded = made_of.encode_batch([text])[0]
    assert time.process_time() - began < 10  # each mark by itself: minutes
    assert encoded.byte_lengths.sum() == len(text.encode())
    assert encoded.byte_lengths[:3].tolist() == [5, 5, 5]
