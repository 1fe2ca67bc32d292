"""The latest checkpoints are kept, those of every so many steps, and the best."""

import math
import types

import pytest

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.preservation import Preservation
from lm.config import override
from lm.errors import Interrupted
from lm.experiment.train import train
from lm.training.metric_writer import read_metrics
from tests.checkpoints.test_checkpointer import state_at
from tests.experiment.test_train import interrupt_at


def kept(policy, steps):
    there = [types.SimpleNamespace(step=step, metrics=None) for step in steps]
    return [s for s, k in zip(steps, policy.should_preserve(there, context=None), strict=True) if k]


def test_the_latest_and_the_multiples_are_kept():
    assert kept(Preservation(2), [1, 2, 3, 4, 5, 6]) == [5, 6]
    assert kept(Preservation(1, every=2), [1, 2, 3, 4, 5]) == [2, 4, 5]


@pytest.mark.parametrize(("lower", "best"), [(True, [2, 3]), (False, [1, 4])])
def test_the_best_are_kept_and_of_equals_the_earlier_ones(lower, best):
    policy = Preservation(1, best=2, metric="eval/x", lower_is_better=lower)
    for step, value in enumerate((3.0, 1.0, 1.0, 3.0, 3.0, math.nan), start=1):
        policy.see(step, {"eval/x": value})
    policy.see(7, {"eval/other": 0.0})
    steps = [1, 2, 3, 4, 5, 6, 7]
    assert kept(policy, steps) == sorted({*policy.best_steps(steps), 7})
    assert policy.best_steps(steps) == best


def test_a_protected_step_is_kept_until_another_is():
    policy = Preservation(1, protected=2)
    assert kept(policy, [1, 2, 3, 4]) == [2, 4]


def test_orbax_removes_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path, Preservation(1, every=4, best=1, metric="m"))
    for step, value in ((2, 0.5), (4, 0.9), (6, 0.7), (7, 0.8)):
        checkpoints.keep.see(step, {"m": value})
        checkpoints.save(state_at(step))
    checkpoints.close()
    assert checkpoints.steps == [2, 4, 7]


def test_an_interrupted_run_keeps_the_same_checkpoints_as_one_that_was_not(
    small_config, tmp_path, monkeypatch
):
    keep = {"max_to_keep": 1, "keep_every": 3, "keep_best": 2, "every": 0}
    settings = {f"checkpoint.{key}": value for key, value in keep.items()}
    config = override(small_config, settings | {"evaluation.every": 2})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(8, patch)
        train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    lines = read_metrics(tmp_path / "whole/metrics.jsonl")
    found = {each["step"]: each["eval/nats_per_token"] for each in lines if "eval/tokens" in each}
    best = sorted(found, key=found.__getitem__)[:2]
    for workdir in (tmp_path / "whole", tmp_path / "broken"):
        assert Checkpoints(workdir).steps == sorted({3, 6, 9, 12, *best})
