"""Training stops where it is of no more use, and the best state is what is left and reported."""

import json
import math

import jax
import numpy as np
import pytest

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.restore import restore
from lm.config import override
from lm.errors import Interrupted, UserError
from lm.evaluation.held_out import Evaluation
from lm.experiment import hooks as hooks_module
from lm.experiment import run as run_module
from lm.experiment.train import train
from lm.training.early_stopping import Stopping

METRIC = "eval/bits_per_byte"


@pytest.mark.parametrize("lower", [True, False])
def test_training_is_done_after_so_many_evaluations_without_a_better_one(lower):
    stopping = Stopping(METRIC, lower, patience=2)
    values = [3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.5]
    seen = []
    for step, value in enumerate(values if lower else [-v for v in values], start=1):
        if stopping.done:
            break
        seen.append(stopping.see(step, value))
    # The first of equals is the best, and equals are not better.
    assert seen == [True, True, False, True, False, False] and stopping.best == 4
    again = Stopping(METRIC, lower, patience=2)
    sign = 1 if lower else -1
    again.recall({"step": n, METRIC: sign * v} for n, v in enumerate(values[:6], start=1))
    assert (again.best, again.done) == (4, True)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "best", "done"),
    [
        ([NAN, 3.0, 4.0, 2.0], 4, False),
        ([NAN, NAN], None, True),
        ([-INF, 3.0, NAN, 2.5, INF], 4, False),
        ([3.0, NAN, -INF], 1, True),
    ],
)
def test_an_evaluation_that_is_not_finite_is_never_the_best(values, best, done):
    stopping = Stopping(METRIC, lower=True, patience=2)
    for step, value in enumerate(values, start=1):
        stopping.see(step, value)
    assert (stopping.best, stopping.done) == (best, done)


class Judge:
    """Stands for `evaluate`: gives values in turn, and parameters seen before theirs."""

    def __init__(self, values):
        self.values, self.seen = list(values), []

    def __call__(self, program, params, corpus, config):
        params = jax.tree.map(np.asarray, params)
        for value, known in self.seen:
            if jax.tree.all(jax.tree.map(np.array_equal, params, known)):
                return Evaluation({METRIC: value})
        self.seen.append((self.values[len(self.seen)], params))
        return Evaluation({METRIC: self.seen[-1][0]})


@pytest.fixture
def patient(small_config):
    sizes = {
        "model.num_layers": 1,
        "model.d_model": 16,
        "checkpoint.every": 0,
        "checkpoint.max_to_keep": 1,
    }
    sizes |= {"mesh.data": 1, "log.every": 4}
    patience = {"evaluation.every": 2, "evaluation.patience": 2}
    return override(small_config, sizes | patience)


def test_the_best_state_is_restored_reported_and_the_newest(patient, tmp_path, monkeypatch, losses):
    judge = Judge([3.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(hooks_module, "evaluate", judge)
    result = train(patient, tmp_path / "run")
    # The restored parameters are bit for bit those that were judged best: the judge knows them.
    assert (result[METRIC], result["best_step"]) == (2.0, 4)
    assert len(judge.seen) == 4
    kept = restore(tmp_path / "run")
    assert kept.step == 4
    jax.tree.map(np.testing.assert_array_equal, kept.params, judge.seen[1][1])
    assert Checkpoints(tmp_path / "run").steps == [4]
    records = losses(tmp_path / "run")
    assert records[-1]["step"] == 8 < patient.steps
    assert [r[METRIC] for r in records if METRIC in r] == [3.0, 2.0, 2.5, 2.6]


def test_an_interrupted_run_remembers_its_best(patient, tmp_path, monkeypatch, losses):
    config, judge = override(patient, {"checkpoint.every": 6}), Judge([3.0, 2.0, 2.5, 2.6])
    monkeypatch.setattr(hooks_module, "evaluate", judge)
    original = run_module.local_train_batches

    def broken(*arguments, start, **keywords):
        for number, rows in enumerate(original(*arguments, start=start, **keywords), start + 1):
            if number == 7 and start == 0:
                raise Interrupted(6, 2)
            yield rows

    monkeypatch.setattr(run_module, "local_train_batches", broken)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    result = train(config, tmp_path / "run")
    assert (result[METRIC], result["best_step"]) == (2.0, 4)
    assert restore(tmp_path / "run").step == 4
    assert [r[METRIC] for r in losses(tmp_path / "run") if METRIC in r] == [3.0, 2.0, 2.5, 2.6]


def strict(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("patience", [0, 2])
def test_a_run_that_cannot_be_judged_is_not_finished_and_is_judged_again(
    patient, tmp_path, monkeypatch, patience
):
    config = override(patient, {"evaluation.patience": patience})
    monkeypatch.setattr(hooks_module, "evaluate", Judge([math.nan] * 6))
    for _ in range(2):
        with pytest.raises(UserError, match="bits_per_byte is nan after training"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run/result.json").exists()
    last = strict(tmp_path / "run/metrics.jsonl")[-1]
    assert last["step"] == (4 if patience else 12) and last[METRIC] is None
    assert Checkpoints(tmp_path / "run").latest == last["step"]
    monkeypatch.setattr(hooks_module, "evaluate", Judge([2.0]))
    assert train(config, tmp_path / "run")[METRIC] == 2.0
    assert (tmp_path / "run/result.json").exists()


def test_what_was_learned_is_kept_where_an_evaluation_fails(patient, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no token is asked for")

    monkeypatch.setattr(hooks_module, "evaluate", fail)
    with pytest.raises(UserError, match="no token"):
        train(patient, tmp_path / "run")
    assert Checkpoints(tmp_path / "run").latest == 2
