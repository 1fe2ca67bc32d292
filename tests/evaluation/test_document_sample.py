"""Held-out text can be counted in bytes of whole documents, the same ones for every tokenizer."""

import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from configs import finetune
from lm.checkpoints.restore import restore
from lm.config import override
from lm.data.documents import DocumentRows, Documents
from lm.data.packing import Packer
from lm.data.tokenizer import Encoded
from lm.errors import UserError
from lm.evaluation.diagnostics.contexts import collect_contexts
from lm.evaluation.document_totals import FILE, MOST, DocumentTotals
from lm.evaluation.held_out import held_out_text
from lm.experiment.train import train
from lm.training.validate import check

LENGTHS = ((5, 9), (1, 1), (11, 30), (4, 4), (7, 20))  # tokens and bytes of each document


@pytest.fixture
def packed():
    """Rows of four positions, and the documents in them."""
    packer = Packer(4, end=0)
    for number, (tokens, _) in enumerate(LENGTHS, start=1):
        packer.add(Encoded(np.full(tokens, number, np.int32), np.ones(tokens + 1, np.int32)))
    parts = [packer.take(), packer.finish()]
    arrays = {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("tokens", "segments")}
    rows = [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
    tokens, sizes = np.array(LENGTHS).T
    return rows, Documents(tokens + 1, sizes, 4)


def test_positions_of_rows_are_those_of_their_documents(packed):
    rows, documents = packed
    at = documents.at(range(len(rows)))
    for row, own in zip(rows, at, strict=True):
        for target, segment, document in zip(row["tokens"][1:], row["segments"], own, strict=True):
            assert (document == len(LENGTHS)) == (segment == 0)
            assert target in (0, document + 1)


def test_a_sample_is_whole_documents_that_have_the_bytes_together(packed):
    _, documents = packed
    order = documents.order()
    assert sorted(order) == list(range(5))
    for wanted in (1, 20, 64):
        chosen = documents.sample(wanted)
        taken = order[: int(chosen.sum())]
        assert chosen[taken].all()
        found = documents.bytes[taken]
        assert found.sum() >= wanted > found[:-1].sum()
    with pytest.raises(UserError, match="num_bytes = 65, but the held-out text has 64 bytes"):
        documents.sample(65)


def test_the_rows_of_a_sample_hold_each_of_its_tokens_once_and_no_other(packed):
    rows, documents = packed
    chosen = np.array([False, True, False, False, True])
    view = DocumentRows(rows, documents, chosen)
    targets = [t for row in view for t in row["tokens"][1:][row["segments"] > 0]]
    assert targets == [2, 0] + 7 * [5] + [0]
    assert view.numbers.tolist() == [1, 6, 7, 8] and len(view) == 4


def test_totals_by_document_add_up_to_those_of_the_rows(packed, tmp_path):
    rows, documents = packed
    totals = DocumentTotals(documents)
    nats = np.where([row["segments"] > 0 for row in rows], 2.0, 0.0)
    for start in range(0, len(rows), 3):
        numbers = range(start, min(start + 3, len(rows)))
        totals.add(numbers, nats[start : start + 3])
    assert totals.write(epath.Path(tmp_path)) == {}
    found = json.loads((tmp_path / FILE).read_text())
    assert sum(found["nats"]) == nats.sum() and sum(found["bytes"]) == 64
    assert sorted(found["bytes"]) == sorted(size for _, size in LENGTHS)
    assert len(found["bytes"]) <= MOST


@pytest.mark.slow
def test_tokenizers_are_judged_on_the_same_bytes_and_documents(small_config, tmp_path):
    found = {}
    settings = {"steps": 3, "schedule.warmup_steps": 1, "evaluation.num_bytes": 1500}
    for name in ("bytes", "bpe"):
        own = {"data.tokenizer": name, "data.vocab_size": 300 if name == "bpe" else None}
        result = train(override(small_config, settings | own), tmp_path / name)
        sums = json.loads((tmp_path / name / FILE).read_text())
        found[name] = result["eval/bytes"], sums["bytes"]
        bits = sum(sums["nats"]) / math.log(2) / result["eval/bytes"]
        assert bits == pytest.approx(result["eval/bits_per_byte"], rel=1e-4)
        assert sum(sums["bytes"]) == pytest.approx(result["eval/bytes"])
    assert found["bytes"] == found["bpe"] and found["bytes"][0] >= 1500


@pytest.mark.slow
def test_a_diagnosis_reads_the_documents_that_the_run_was_evaluated_on(small_config, tmp_path):
    settings = {"steps": 3, "schedule.warmup_steps": 1, "evaluation.num_bytes": 1500}
    result = train(override(small_config, settings), tmp_path)
    run = restore(tmp_path)
    with jax.set_mesh(run.program.mesh):
        assert len(collect_contexts(run, 8).confidence) == result["eval/tokens"]


def test_more_bytes_than_are_held_out_are_refused_before_training(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("lm.experiment.train.corpus_program", None)  # comes before any step
    config = override(small_config, {"evaluation.num_bytes": 10**9})
    with pytest.raises(UserError, match="num_bytes = 1000000000, but the held-out text has"):
        train(config, tmp_path / "run")


def test_pairs_have_no_documents_to_be_judged_on(small_config):
    config = override(small_config, {"evaluation.num_bytes": 100})
    pairs = SimpleNamespace(rows=lambda split: [])
    with pytest.raises(UserError, match="num_bytes = 100 counts bytes of documents"):
        held_out_text(pairs, config)


def test_a_task_has_no_bytes_to_be_judged_on():
    config = override(finetune.get_config("tiny"), {"evaluation.num_bytes": 100})
    with pytest.raises(UserError, match="num_bytes = 100 is of text, and task regression"):
        check(config)
