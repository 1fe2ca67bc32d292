"""Templates, draws and readings: which tokens are scored, and what is seen before them."""

import numpy as np
import pytest

from lm.data import ByteTokenizer
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError
from lm.evaluation.prompting.evaluate_prompts import calibrate
from lm.evaluation.prompting.examples import draw_shots
from lm.evaluation.prompting.query_encoder import QUERY_ENCODERS, QueryEncoder
from lm.evaluation.prompting.template import Query, parse
from lm.tasks.records import Record

RECORD = Record("a.jsonl line 1", {"text": "It {was} fun.", "stars": 4})
END = ByteTokenizer.end
MASK = ByteTokenizer.mask
FRAME = encoder_decoder_tokens(None, END)


def ids(text):
    return list(text.encode())


def test_a_template_is_filled_with_columns_and_never_with_code():
    query = parse("{{{text}}} {stars}: {answer}!\n{text}").fill(RECORD, "yes")
    assert query == Query("{It {was} fun.} 4: ", "yes", "!\nIt {was} fun.")
    free = parse("{text} {answer}").empty("N/A", "yes")
    assert free == Query("N/A ", "yes", "")
    with pytest.raises(UserError, match=r"no column 'text.__class__', only text, stars"):
        parse("{text.__class__}{answer}").fill(RECORD, "")


@pytest.mark.parametrize(
    "template", ["{text}", "{answer}{answer}", "{answer} {", "{}{answer}", "{answer!r}"]
)
def test_a_template_without_one_answer_is_refused(template):
    with pytest.raises(UserError, match=r"must hold {answer} once"):
        parse(template)


def test_draws_depend_on_the_seed_and_the_question_alone():
    labels = [0, 1] * 10
    first = draw_shots(labels, 4, seed=0, question=7, balanced=False, barred=set())
    assert first == draw_shots(labels, 4, seed=0, question=7, balanced=False, barred=set())
    assert len(set(first)) == 4
    others = [draw_shots(labels, 4, seed, q, False, set()) for seed, q in ((1, 7), (0, 8))]
    assert first not in others
    assert draw_shots(labels, 0, seed=0, question=7, balanced=False, barred=set()) == []
    barred = set(first)
    assert not barred & set(draw_shots(labels, 16, 0, 7, False, barred))


def test_balanced_draws_hold_as_many_of_each_label():
    labels = [0] * 30 + [1] * 3 + [2] * 2
    for question in range(20):
        drawn = draw_shots(labels, 6, 0, question, balanced=True, barred=set())
        assert sorted(labels[i] for i in drawn) == [0, 0, 1, 1, 2, 2]
    orders = {tuple(labels[i] for i in draw_shots(labels, 6, 0, q, True, set())) for q in range(20)}
    assert len(orders) > 10


def test_calibration_takes_off_what_is_said_without_content():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 4))
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = p[0] / p[1:].mean(axis=0)
    np.testing.assert_allclose(np.exp(calibrate(scores)), expected / expected.sum())
    np.testing.assert_allclose(np.exp(calibrate(scores[:1])), p[0])
    # A question that says nothing gets an even answer.
    np.testing.assert_allclose(calibrate(np.stack([scores[0]] * 2)), np.log(0.25))


def read(objective, query, length=32, frame=FRAME, **options):
    (reading,) = QueryEncoder(ByteTokenizer(), length, objective, frame, (END,), **options)([query])
    return reading


def test_a_decoder_predicts_each_token_of_the_answer_from_those_before():
    reading = read("causal", Query("ab", "cd", "e"))
    (row,) = reading.rows
    assert row.inputs.tolist() == [END, *ids("abc")]
    assert row.target_positions.tolist() == [2, 3] and row.targets.tolist() == ids("cd")
    assert read("prefix", Query("ab", "cd")).rows[0].prefix == 3
    assert read("causal", Query("", "cd")).rows[0].target_positions.tolist() == [0, 1]


def test_an_encoder_hides_the_answer_at_once_or_token_by_token():
    (row,) = read("masked", Query("a", "bc", "d")).rows
    assert row.inputs.tolist() == [END, *ids("a"), MASK, MASK, *ids("d"), END]
    assert row.target_positions.tolist() == [2, 3] and row.targets.tolist() == ids("bc")
    rows = read("masked", Query("a", "bc", "d"), mlm_scoring="token").rows
    assert [row.inputs.tolist() for row in rows] == [
        [END, *ids("a"), MASK, *ids("cd"), END],
        [END, *ids("ab"), MASK, *ids("d"), END],
    ]
    assert [row.targets.tolist() for row in rows] == [ids("b"), ids("c")]


def test_an_encoder_decoder_answers_or_fills_a_gap():
    gap = ByteTokenizer.sentinels[0]
    (row,) = read("seq2seq", Query("ab", "cd", "e")).rows
    assert row.encoder_inputs.tolist() == [END, *ids("ab")]
    assert (row.inputs.tolist(), row.target_positions.tolist()) == ([END, *ids("c")], [0, 1])
    (row,) = read("span", Query("ab", "cd", "e")).rows
    assert row.encoder_inputs.tolist() == [END, *ids("ab"), gap, *ids("e")]
    assert (row.inputs.tolist(), row.target_positions.tolist()) == ([END, gap, *ids("c")], [1, 2])
    assert row.targets.tolist() == ids("cd")


def test_an_encoder_decoder_is_asked_as_its_checkpoint_reads_and_writes():
    gap, t5, bart = ByteTokenizer.sentinels[0], ((), (1,), (0,)), ((0,), (2,), (2, 0))
    (row,) = read("span", Query("ab", "cd", "e"), frame=encoder_decoder_tokens(t5, END)).rows
    assert row.encoder_inputs.tolist() == [*ids("ab"), gap, *ids("e"), 1]
    assert (row.inputs.tolist(), row.target_positions.tolist()) == ([0, gap, *ids("c")], [1, 2])
    for length, seen in ((9, "ab"), (3, "b")):
        (row,) = read("seq2seq", Query("ab", "cd"), length, encoder_decoder_tokens(bart, END)).rows
        assert row.encoder_inputs.tolist() == [0, *ids(seen), 2]
        assert (row.inputs.tolist(), row.target_positions.tolist()) == ([2, 0, *ids("c")], [1, 2])


@pytest.mark.parametrize("objective", QUERY_ENCODERS)
def test_what_is_too_long_loses_its_first_tokens(objective):
    whole, cut = (read(objective, Query(text, "yz"), length=9) for text in ("abc", "0123456abc"))
    assert (whole.truncated, cut.truncated) == (False, True)
    side = (
        (lambda row: row.inputs)
        if cut.rows[0].encoder_inputs is None
        else (lambda row: row.encoder_inputs)
    )
    assert len(side(cut.rows[0])) == 9 and side(cut.rows[0])[0] == END
    assert cut.rows[0].targets.tolist() == whole.rows[0].targets.tolist() == ids("yz")
    hidden = cut.rows[0].inputs[cut.rows[0].target_positions]
    assert hidden.tolist() == whole.rows[0].inputs[whole.rows[0].target_positions].tolist()
    with pytest.raises(UserError, match="the answer 'yzyzyzyzyz' has 10 tokens, more than fit"):
        read(objective, Query("a", "yz" * 5), length=9)
    with pytest.raises(UserError, match="the answer '' has no token"):
        read(objective, Query("a", ""))


def test_a_token_across_the_border_is_the_answers(tmp_path):
    from lm.data import make_tokenizer

    tokenizer = make_tokenizer("bpe", 300, ["it is good, it was good, so good"] * 9)
    (reading,) = QueryEncoder(tokenizer, 64, "causal", FRAME, (tokenizer.end,))(
        [Query("it is ", "good")]
    )
    (row,) = reading.rows
    assert tokenizer.decode(row.targets) == " good"
    assert tokenizer.decode([*row.inputs, row.targets[-1]]) == "it is good"
