"""Perplexity counts every token of a text once, with the context that its windows promise."""

import json
import math

import jax
import numpy as np
import pytest

from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation import perplexity
from lm.evaluation.perplexity import (
    document_likelihoods,
    format_table,
    read_documents,
    total,
    windows,
    write_likelihoods,
)
from lm.generation import prompt_batch
from lm.training.prepare import shared_program

TEXT = "def add(a, b):\n    return a + b  # né 🙂\n"


class Opened(Restored):
    """A run whose texts are opened as a test says."""

    opens = (ByteTokenizer.end,)


class Unopened(Restored):
    opens = ()


@pytest.fixture
def run(base_config):
    """A decoder of bytes with 16 positions, whose weights are large enough to matter."""
    settings = {"model.max_seq_len": 16, "data.seq_len": 16, "model.init_std": 0.3}
    config = override(base_config, settings)
    program = shared_program(config, 256)
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(1)).all_params
    return Opened(config, ByteTokenizer(), program, params, 0)


def each_nats(run, tokens):
    """-log p of every token of each row but the first, by one pass over all of them."""
    tokens = np.asarray(tokens)
    places = np.broadcast_to(np.arange(tokens.shape[-1] - 1), tokens[:, 1:].shape)
    batch = prompt_batch(tokens[:, :-1], places)
    log_probs = run.program.model.apply({"params": run.params}, batch, method="log_probs")
    return -np.take_along_axis(np.asarray(log_probs), tokens[:, 1:, None], axis=2)[..., 0]


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 18, 40, 65])
@pytest.mark.parametrize("stride", [1, 5, 16])
@pytest.mark.parametrize("given", [0, 1, 2])
def test_every_token_is_predicted_once_and_has_the_context_that_was_promised(size, stride, given):
    tokens, predicted = np.arange(size), []
    for row in windows(tokens, given, 16, stride):
        assert len(row.inputs) <= 16
        np.testing.assert_array_equal(row.inputs[row.target_positions] + 1, row.targets)
        np.testing.assert_array_equal(np.diff(row.inputs), 1)
        for place, target in zip(row.target_positions, row.targets, strict=True):
            assert place + 1 >= min(target, 16 - stride + 1)
        predicted += row.targets.tolist()
    assert predicted == list(range(max(given, 1), size))


@pytest.mark.parametrize("stride", [3, 16])
def test_windows_are_those_of_the_evaluation_harness(stride):
    theirs = pytest.importorskip("lm_eval.utils").get_rolling_token_windows
    for size in (1, 16, 17, 50):
        ids = list(range(size))
        ours = windows(np.array([99, *ids]), 1, 16, stride)
        for row, (seen, predicted) in zip(ours, theirs(ids, 99, 16, 17 - stride), strict=True):
            assert row.targets.tolist() == predicted
            assert row.inputs.tolist() == seen


def test_a_short_texts_figures_are_the_mean_over_its_tokens_and_its_bytes(run):
    text = TEXT[:12]
    nats = each_nats(run, [[255, *text.encode()]]).sum()
    (found,) = document_likelihoods(run, [("a", text)])
    assert (found.tokens, found.bytes) == (12, 12)
    metrics = found.metrics
    assert metrics["nats_per_token"] == pytest.approx(nats / 12, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / 12), rel=1e-4)
    assert metrics["bits_per_byte"] == pytest.approx(nats / 12 / math.log(2), rel=1e-5)


def test_a_text_that_nothing_opens_predicts_all_but_its_first_token(run):
    unopened = Unopened(run.config, run.tokenizer, run.program, run.params, 0)
    text = TEXT[:12]
    (found,) = document_likelihoods(unopened, [("a", text)])
    assert (found.tokens, found.bytes) == (11, 11)
    assert found.nats == pytest.approx(each_nats(run, [list(text.encode())]).sum(), rel=1e-5)


def test_a_long_texts_windows_move_by_the_stride(run):
    ids = [255, *TEXT.encode()]
    (beside,) = document_likelihoods(run, [("a", TEXT)])
    assert (beside.tokens, beside.bytes) == (len(TEXT.encode()), len(TEXT.encode()))
    (each,) = document_likelihoods(run, [("a", TEXT)], stride=1)
    rows = each_nats(run, [ids[n - 16 : n + 1] for n in range(16, len(ids))])
    wanted = rows[0].sum() + rows[1:, -1].sum()
    assert each.nats == pytest.approx(wanted, rel=1e-5)
    assert abs(each.nats - beside.nats) > 1e-2


def test_documents_are_told_apart_and_sum_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr(perplexity, "_TOGETHER", 30)  # several rounds
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("x = 1\n" * 9)
    (tmp_path / "c.txt").write_text(TEXT[:9])
    found = document_likelihoods(run, read_documents(["", TEXT], [f"{tmp_path}/*.txt"]))
    alone = [
        document_likelihoods(run, [(each.name, (tmp_path / each.name).read_text())])[0]
        for each in found[2:]
    ]
    assert [each.nats for each in found[2:]] == pytest.approx([each.nats for each in alone])
    assert [each.name for each in found[:2]] == ["--text 1", "--text 2"]
    assert found[1].nats == pytest.approx(found[2].nats)
    assert total(found).nats == pytest.approx(sum(each.nats for each in found))
    assert total(found).tokens == sum(each.tokens for each in found)
    assert "nan" in format_table(found)[1] and "b.txt" in format_table(found)[4]
    write_likelihoods(found, tmp_path / "out")
    objects = [json.loads(x) for x in (tmp_path / "out" / "documents.jsonl").open()]
    assert objects[0] == {"document": "--text 1", "tokens": 0, "bytes": 0}
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert kept == total(found).metrics


def test_what_has_no_perplexity_is_named(run, base_config):
    with pytest.raises(UserError, match="no token to predict; give a longer text"):
        document_likelihoods(run, [("a", "")])
    with pytest.raises(UserError, match=r"--stride=17 must be from 1 to the model's 16 positions"):
        document_likelihoods(run, [("a", TEXT)], stride=17)
    for settings, message in (
        ({"task.name": "classification", "output.tied": False}, "predicts labels"),
        ({"model.architecture": "encoder", "objective": "masked"}, "perplexity needs a decoder"),
    ):
        config = override(base_config, settings)
        other = Opened(config, run.tokenizer, run.program, run.params, 0)
        with pytest.raises(UserError, match=message):
            document_likelihoods(other, [("a", TEXT)])
