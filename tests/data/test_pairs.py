"""Pairs stay together, whole, and as many to a row as fit."""

import json

import numpy as np
import pytest

from lm.data import DataConfig, documents, holds_pairs, prepare
from lm.data.text_pairs import of_module
from lm.errors import UserError

PAIRS = [(f"source {i} {'s' * (i % 7)}", f"target {i} {'t' * (i % 5)}") for i in range(60)]


def write(folder):
    tabs = folder / "a.tsv"
    tabs.write_text("".join(f"{s}\t{t}\n" for s, t in PAIRS[:30]))
    lines = [json.dumps({"source": s, "target": t}) for s, t in PAIRS[30:]]
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n\n")
    return f"pairs:{folder}/*"


def test_files_hold_a_pair_a_line_tab_separated_or_json(tmp_path):
    found = list(documents(write(tmp_path)))
    assert [(document.encoder_text, document.text) for document in found] == PAIRS


def test_rows_hold_whole_pairs_on_both_sides_and_leave_out_only_the_long(tmp_path):
    source = write(tmp_path)
    (tmp_path / "c.tsv").write_text(f"{'long' * 20}\tshort\n")
    data = DataConfig(source=source, seq_len=48, validation_fraction=0.3)
    corpus = prepare(data, tmp_path / "cache")
    end, found, size = corpus.tokenizer.end, [], 0
    for split in ("train", "validation"):
        for row in corpus.rows(split):
            targets, size = row["tokens"][1:], size + int(row["bytes"])
            for number in sorted(set(row["segments"]) - {0}):
                ids = row["encoder_tokens"][row["encoder_segments"] == number]
                answer = targets[row["segments"] == number]
                assert ids[0] == end and answer[-1] == end
                found.append((corpus.tokenizer.decode(ids), corpus.tokenizer.decode(answer)))
    assert sorted(found) == sorted(PAIRS)
    assert size == sum(len(target.encode()) for _, target in PAIRS)
    assert sum(split["long"] for split in corpus.manifest["splits"].values()) == 1
    assert np.asarray(corpus.counts()).sum() == corpus.manifest["splits"]["train"]["tokens"]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("x.tsv", "no tab", "line 1 has 0 tabs, and a pair has one"),
        ("x.jsonl", '{"source": "a"}', 'line 1 is no {"source"'),
        ("x.jsonl", "[1]", 'line 1 is no {"source"'),
    ],
)
def test_a_line_that_is_no_pair_is_named(name, line, message, tmp_path):
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        list(documents(f"pairs:{tmp_path}/{name}"))
    assert message in str(caught.value)


def test_a_definition_is_paired_with_the_first_line_of_its_docstring():
    text = 'class A(B):\n  """Is it."""\n  def f(self, x=1, *y):\n    """Does it.\n\n    M."""\n'
    assert list(of_module(text)) == [("class A(B)", "Is it."), ("def f(self, x=1, *y)", "Does it.")]
    assert list(of_module("def f(:")) == []
    assert holds_pairs("docstrings") and not holds_pairs("stdlib")
