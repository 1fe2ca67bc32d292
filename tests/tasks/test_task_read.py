"""Labelled examples are read as their formats say; every mistake in them is named in one line."""

import gzip
import json

import pytest

from configs import default
from lm.errors import UserError
from lm.tasks import build_task
from lm.tasks.records import Record, records

SENTENCES = [["EU", "rejects", "calls"], ["Peter", "Blackburn"]]
TAGS = [["B-ORG", "O", "O"], ["B-PER", "I-PER"]]


def read(path, **keywords):
    return [record.values for record in records(f"files:{path}", **keywords)]


def task(name, **options):
    config = default.get_config()
    config.task.name = name
    config.task.update(options)
    return build_task(config)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_whatever_ends_its_lines(tmp_path, end):
    lines = ["text,label", 'good,"yes"', '"two\nlines, and a comma",no', "", "naïve 日本,yes"]
    (tmp_path / "a.csv").write_bytes(end.join(lines).encode())
    expected = [("good", "yes"), ("two\nlines, and a comma", "no"), ("naïve 日本", "yes")]
    assert [(r["text"], r["label"]) for r in read(tmp_path / "a.csv")] == expected


def test_mixed_line_ends_and_a_byte_order_mark_are_no_part_of_the_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbftext\tlabel\r\none\t1\ntwo\t0\r\n\r\nthree\t1")
    assert read(tmp_path / "a.tsv") == [
        {"text": "one", "label": "1"},
        {"text": "two", "label": "0"},
        {"text": "three", "label": "1"},
    ]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n\n{"a": 2}\r{"a": 3}')
    assert read(tmp_path / "a.jsonl") == [{"a": "\u2028"}, {"a": 2}, {"a": 3}]


def test_quotes_in_a_tsv_are_text_and_columns_can_be_named(tmp_path):
    (tmp_path / "a.tsv").write_text('1\t2.5\tsay "so\n2\t-1\t"\n')
    found = read(tmp_path / "a.tsv", columns=("id", "label", "text"))
    assert found == [
        {"id": "1", "label": "2.5", "text": 'say "so'},
        {"id": "2", "label": "-1", "text": '"'},
    ]


@pytest.mark.parametrize("blank", ["", "\t", "  "])
def test_sentences_of_conll_columns_end_at_blank_lines(tmp_path, blank):
    text = "-DOCSTART- -X- O\n\n"
    for words, tags in zip(SENTENCES, TAGS, strict=True):
        text += "".join(f"{w} NNP {t}\r\n" for w, t in zip(words, tags, strict=True)) + blank + "\n"
    with gzip.open(tmp_path / "a.conll.gz", "wt", newline="") as file:
        file.write(text)
    found = read(tmp_path / "a.conll.gz")
    assert [r["tokens"] for r in found] == SENTENCES
    assert [r["tags"] for r in found] == TAGS


MISTAKES = {
    "a column too few": ("a.csv", b"text,label\nx,1\ny\n", "line 3 has 1 columns, not 2"),
    "no JSON": ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2 is not JSON"),
    "too deep": ("a.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON ("),
    "a number of 5000 digits": (
        "a.jsonl", b'{"label": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON (Exceeds the limit",
    ),
    "half a character": ("a.jsonl", b'{"label": "\\ud83d"}\n', "line 1 has an escape"),
    "no object": ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
    "a word without a tag": ("a.conll", b"EU B-ORG\nrejects\n", "line 2 has a word without a tag"),
    "an open quote": ("a.csv", b'text,label\n"x,1\n', "cannot be read"),
    "an unknown form": ("a.xlsx", b"x", "ends in none of csv, tsv, jsonl, conll"),
    "bytes that are no UTF-8": ("a.csv", b"text,label\n\xff,1\n", "is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path, name):
    file, content, message = MISTAKES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / file)
    assert message in str(caught.value) and file in str(caught.value)
    assert "\n" not in str(caught.value)


LABELS = {
    "an empty label": ("classification", {"text": "x", "label": " "}, "has no label in column"),
    "a hidden label": ("classification", {"text": "x", "label": None}, "has no label in column"),
    "no such column": ("classification", {"txt": "x", "label": "1"}, "has no column 'text'"),
    "a text that is none": ("classification", {"text": 3, "label": "1"}, "and no text"),
    "a target that is NaN": ("regression", {"text": "x", "label": "nan"}, "no finite number"),
    "an infinite target": ("regression", {"text": "x", "label": "inf"}, "no finite number"),
    "a target that is no number": ("regression", {"text": "x", "label": "high"}, "no finite"),
    "fewer tags than words": (
        "token_classification", {"text": ["a", "b"], "label": ["O"]}, "has 2 words and 1 tags",
    ),
    "an empty "
    "tag": ("token_classification", {"text": ["a", "b"], "label": ["O", ""]}, "word 2 has no tag"),
    "tags in a "
    "string": ("token_classification", {"text": ["a"], "label": "O"}, "is no list of words"),
    "a choice too few": (
        "multiple_choice", {"text": "q", "choices": ["a"], "label": 0}, "give two or more texts",
    ),
    "a choice that is not there": (
        "multiple_choice",
        {"text": "q", "choices": ["a", "b"], "label": 2},
        "neither a choice nor a number",
    ),
    "a choice that is no digit of ours": (
        "multiple_choice",
        {"text": "q", "choices": ["a", "b"], "label": "²"},
        "neither a choice nor a numb",
    ),
    "an unknown role": (
        "instruction", {"text": [{"role": "robot", "content": "x"}]}, "has the role 'robot'",
    ),
    "a message without a text": (
        "instruction", {"text": [{"role": "assistant", "content": None}]}, "says None, and no",
    ),
    "no answer": (
        "instruction", {"text": [{"role": "user", "content": "x"}]}, "nothing that the assistant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_a_record_that_cannot_be_used_is_named_with_its_place(tmp_path, name):
    kind, values, message = LABELS[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(values))
    (record,) = records(f"files:{tmp_path}/a.jsonl")
    with pytest.raises(UserError) as caught:
        task(kind).example(record)
    assert message in str(caught.value) and "a.jsonl line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_not_where_it_is_said_to_be_is_named(tmp_path):
    values = {"q": "who?", "c": "It was Ada.", "a": {"text": ["Ada"], "answer_start": [6]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(values))
    (record,) = records(f"files:{tmp_path}/a.jsonl")
    with pytest.raises(UserError, match="does not stand in the context at character 6"):
        task("extractive_qa", text=("q", "c"), label="a").example(record)


@pytest.mark.parametrize(
    ("texts", "starts"),
    [("Ada", 7), (["Ada"], []), ([7], [7]), (["Ada"], ["7"]), (["."], [-1]), (None, None)],
)
def test_answers_that_are_no_lists_of_texts_and_places_are_named(texts, starts):
    values = {"q": "who?", "c": "It was Ada.", "a": {"text": texts, "answer_start": starts}}
    with pytest.raises(UserError, match=r"here: column 'a' is not .*as many numbers"):
        task("extractive_qa", text=("q", "c"), label="a").example(Record("here", values))


def test_labels_are_ordered_as_numbers_where_all_of_them_are():
    def labels(*found):
        return task("classification").collect_labels([{"label": label} for label in found])

    assert labels("10", "9", "-1") == ("-1", "9", "10")
    assert labels("1", "01", "0") == labels("01", "0", "1") == ("0", "01", "1")
    assert labels("²", "1") == ("1", "²")
    assert labels("--1", "1") == ("--1", "1")
