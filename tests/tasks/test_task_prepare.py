"""Labelled examples become rows, whatever their size; what cannot be learned from is named."""

import numpy as np
import pytest

from lm.config import override
from lm.errors import UserError
from lm.tasks.prepare import prepare_task

LINES = [f"text {n},{'yes' if n % 2 else 'no'}" for n in range(40)]


@pytest.fixture
def prepared(task_config, tmp_path):
    """Prepares lines of a table, with more lines held out where they are given."""

    def prepare(lines, held_out=None, **knobs):
        (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
        task_config.update_from_flattened_dict({k.replace("__", "."): v for k, v in knobs.items()})
        settings = {"data.source": f"files:{tmp_path}/a.csv"}
        if held_out is not None:
            (tmp_path / "b.csv").write_text("\n".join(["text,label", *held_out]))
            settings["task.validation_source"] = f"files:{tmp_path}/b.csv"
        return prepare_task(override(task_config, settings), tmp_path / "cache")

    return prepare


def test_a_sentence_of_ten_thousand_words_fills_one_row(prepared):
    data = prepared([*LINES, f"{'word ' * 10_000},yes"], held_out=LINES[:4])
    rows = data.rows("train")
    segments = [rows[i]["segments"] for i in range(len(rows))]
    assert len(rows) == len(LINES) + 1
    assert {each.shape for each in segments} == {(40,)}
    assert max(int((each > 0).sum()) for each in segments) == 40


CHAT = {"task__name": "instruction", "data__seq_len": 100}


def held_out(data):
    """What the rows of each held-out example say."""
    rows, text = data.rows("validation"), data.tokenizer.decode
    for example in data.examples():
        yield example, [text(rows[i]["tokens"].tolist()) for i in range(*example["rows"])]


def test_conversations_share_rows_of_training_and_held_out_ones_find_their_own(prepared):
    data = prepared(LINES, LINES[:6], **CHAT)
    assert data.manifest["splits"]["train"]["rows"] < len(LINES)
    for example, rows in held_out(data):
        assert rows == [data.task.display_text(example)]


def test_a_held_out_conversation_whose_answer_is_beyond_its_row_is_left_out_and_counted(prepared):
    data = prepared(LINES, [f"{'long ' * 30},yes", *LINES[:3]], **CHAT)
    assert data.manifest["splits"]["validation"] == {"examples": 3, "rows": 3, "long": 1}
    assert [rows for _, rows in held_out(data)] == [
        [data.task.display_text(e)] for e in data.examples()
    ]
    with pytest.raises(UserError, match=r"none of the 1 validation examples .* raise it"):
        prepared(LINES, [f"{'long ' * 30},yes"], **CHAT)


def test_what_is_written_is_counted_for_heads_that_order_words(prepared):
    data = prepared(LINES, LINES[:2], task__name="seq2seq")
    expected = np.zeros(256, int)
    np.add.at(expected, list(b"yes" * 20 + b"no" * 20), 1)
    expected[data.tokenizer.end] = 40
    np.testing.assert_array_equal(data.counts(), expected)


def test_the_hash_names_examples_and_not_the_rows_that_they_became(task_config, labelled, cache):
    base = {"data.source": f"files:{labelled}/rows.jsonl", "task.name": "extractive_qa"}
    base |= {"task.text": ("question", "context"), "task.label": "answers", "task.doc_stride": 4}
    made = [
        prepare_task(override(task_config, base | {"data.seq_len": length}), cache).manifest
        for length in (40, 64)
    ]
    assert made[0]["splits"] != made[1]["splits"]
    assert made[0]["hash"] == made[1]["hash"]
    other = override(task_config, base | {"data.validation_fraction": 0.4})
    assert prepare_task(other, cache).manifest["hash"] != made[0]["hash"]


MISTAKES = {
    "a label that training has not": (LINES, ["new,maybe"], "maybe"),
    "one class only": ([f"text {n},yes" for n in range(40)], None, "has the label 'yes'"),
    "a file without examples": ([], None, "holds no examples"),
    "nothing held out": (LINES, [], "the validation split of"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_examples_that_cannot_be_learned_from_are_named_in_one_line(prepared, name, tmp_path):
    lines, held_out, message = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        prepared(lines, held_out)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    kept = (tmp_path / "cache").glob("[!.]*") if (tmp_path / "cache").exists() else ()
    assert not list(kept)


def test_an_empty_file_is_named(prepared, task_config, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="empty"):
        prepare_task(
            override(task_config, {"data.source": f"files:{tmp_path}/empty.csv"}), tmp_path / "c"
        )
