"""Runs that are trained in one program have the numbers of separate runs, and their files."""

import json
import signal

import jax
import numpy as np
import pytest

from lm.checkpoints.restore import restore
from lm.config import override
from lm.errors import Interrupted, UserError
from lm.experiment import replicas as replicas_module
from lm.experiment import run as run_module
from lm.experiment.ablation.grouping import group_points
from lm.experiment.ablation.points import Ablation, make_points
from lm.experiment.ablation.sweep import train_points
from lm.experiment.attempts import read_attempts
from lm.experiment.hooks import Evaluate
from lm.experiment.replicas import Replication, check_replication, why_alone
from lm.experiment.train import train

ROWS = [{"attention.weighting": "softmax"}, {"attention.weighting": "sigmoid"}]


@pytest.fixture
def tiny(small_config):
    """Six steps of a small model, with draws that depend on the seed."""
    return override(
        small_config,
        {
            "steps": 6,
            "data.seq_len": 16,
            "model.d_model": 8,
            "model.num_heads": 2,
            "model.dropout": 0.1,
            "checkpoint.every": 4,
            "evaluation.every": 3,
        },
    )


def result_of(workdir):
    timed = ("seconds", "tokens_per_second")
    content = json.loads((workdir / "result.json").read_text())
    return {k: v for k, v in content.items() if k not in timed}


def names_of(workdir):
    return {path.name for path in workdir.iterdir()}


def check_equal(workdir, alone, losses, rtol=0.0):
    """A replica's folder is that of a separate run, whose numbers differ by `rtol` at most."""
    same = dict(rtol=rtol, atol=0.0)
    assert names_of(workdir) == names_of(alone)
    assert names_of(workdir / "checkpoints") == names_of(alone / "checkpoints")
    for name in ("config.json", "data.json"):
        assert (workdir / name).read_text() == (alone / name).read_text()
    for one, other in [
        (result_of(workdir), result_of(alone)),
        *zip(losses(workdir), losses(alone), strict=True),
    ]:
        assert one.keys() == other.keys()
        numbers = [name for name, value in other.items() if isinstance(value, float)]
        assert {k: v for k, v in one.items() if k not in numbers} == {
            k: v for k, v in other.items() if k not in numbers
        }
        np.testing.assert_allclose(
            [one[name] for name in numbers], [other[name] for name in numbers], **same
        )
    if not rtol:
        params = restore(workdir).params, restore(alone).params
        jax.tree.map(np.testing.assert_array_equal, *params)


def test_points_that_differ_only_in_the_seed_are_grouped(tiny, tmp_path, capsys):
    points = make_points(tiny, Ablation(ROWS, (0, 1, 2)), tmp_path)
    groups = group_points(points, points[1:], 2)
    found = [[(each.row.partition("=")[2], each.seed) for each in group] for group in groups]
    assert found == [
        [("softmax", 0)],
        [("sigmoid", 0), ("sigmoid", 1)],
        [("softmax", 1), ("softmax", 2)],
        [("sigmoid", 2)],
    ]
    assert capsys.readouterr().out == ""
    alone = override(tiny, {"alarm.policy": "rollback", "alarm.loss_spike": 5.0})
    points = make_points(alone, Ablation(ROWS, (0, 1, 2)), tmp_path)
    assert group_points(points, points, 2) == [[point] for point in points]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert told[0].startswith(
        "weighting=softmax is trained one seed at a time: config.alarm.policy"
    )


def test_what_cannot_be_replicated_is_named(tiny, monkeypatch):
    assert why_alone(tiny) is None
    for changes, name in [
        ({"log.profile_steps": 2}, "config.log.profile_steps"),
        ({"log.trackers": ("wandb",)}, "config.log.trackers has wandb"),
        ({"mesh.data": 2}, "config.mesh is of 2 devices"),
        ({"continual.sources": ("a", "b")}, "config.continual.sources"),
    ]:
        assert name in str(why_alone(override(tiny, changes)))
    monkeypatch.setattr(replicas_module, "process_count", lambda: 2)
    check_replication(Replication(1))
    with pytest.raises(UserError, match="--replicas=2 trains on one device, and this command runs"):
        check_replication(Replication(2))


def test_a_sweep_of_replicas_writes_what_separate_runs_write(tiny, tmp_path, losses):
    points = make_points(tiny, Ablation(ROWS[:1], (0, 3)), tmp_path / "sweep")
    assert train_points(points, replication=Replication(2)) == []
    train(points[1].config, tmp_path / "alone")
    # Programs of the fast tests are compiled without optimization, and round otherwise in a loop.
    check_equal(points[1].workdir, tmp_path / "alone", losses, rtol=1e-5)
    assert losses(points[0].workdir) != losses(points[1].workdir)
    assert [each["how"] for each in read_attempts(points[0].workdir)] == ["finished"]


def stop_at(step, monkeypatch):
    """Sends a signal to this process, once, when the run of seed 0 asks for the data of a step."""
    original = run_module.local_train_batches

    def batches(*arguments, start, seed, **keywords):
        found = original(*arguments, start=start, seed=seed, **keywords)
        for number, rows in enumerate(found, start + 1):
            if number == step and seed == 0:
                signal.raise_signal(signal.SIGTERM)
            yield rows

    monkeypatch.setattr(run_module, "local_train_batches", batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output.head": "sparsemax", "attention.mechanism": "differential"},
        {"attention.weighting": "sparsemax", "evaluation.patience": 1},
        {
            "optimizer.ema_decay": 0.9,
            "regularization.l2": 1e-3,
            "regularization.penalty_adaptation": 1.0,
        },
    ],
)
def test_replicas_one_after_the_other_have_the_bits_of_separate_runs(
    tiny, tmp_path, losses, changes
):
    points = make_points(override(tiny, changes), Ablation([{}], (0, 1, 5)), tmp_path / "sweep")
    assert train_points(points, replication=Replication(3)) == []
    for point in points:
        alone = tmp_path / f"alone-{point.seed}"
        train(point.config, alone)
        check_equal(point.workdir, alone, losses)


@pytest.mark.slow
def test_replicas_of_a_very_small_adaptive_head_have_its_numbers_up_to_rounding(
    tiny, tmp_path, losses
):
    # In a loop, XLA's CPU backend takes another kernel for the gradient of its small table.
    adaptive = override(tiny, {"output.head": "adaptive", "output.tied": False})
    points = make_points(adaptive, Ablation([{}], (0, 1)), tmp_path / "sweep")
    assert train_points(points, replication=Replication(2)) == []
    train(points[1].config, tmp_path / "alone")
    check_equal(points[1].workdir, tmp_path / "alone", losses, rtol=1e-5)


@pytest.mark.slow
def test_replicas_at_once_have_the_losses_of_separate_runs_up_to_rounding(tiny, tmp_path, losses):
    points = make_points(tiny, Ablation([{}], (0, 1)), tmp_path / "sweep")
    assert train_points(points, replication=Replication(2, "vmap")) == []
    for point in points:
        alone = tmp_path / f"alone-{point.seed}"
        train(point.config, alone)
        check_equal(point.workdir, alone, losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("replication", [Replication(2), Replication()])
def test_an_interruption_saves_every_replica_and_the_sweep_goes_on_to_the_same_bits(
    tiny, tmp_path, losses, monkeypatch, replication
):
    points = make_points(tiny, Ablation([{}], (0, 1)), tmp_path / "sweep")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(3, patch)
        train_points(points, replication=Replication(2))
    for point in points:
        assert any((point.workdir / "checkpoints").iterdir())
        assert [each["how"] for each in read_attempts(point.workdir)] == ["interrupted"]
    assert train_points(points, replication=replication) == []
    for point in points:
        alone = tmp_path / f"alone-{point.seed}"
        train(point.config, alone)
        assert result_of(point.workdir) == result_of(alone)
        assert losses(point.workdir) == losses(alone)


@pytest.mark.slow
def test_a_replica_that_fails_does_not_stop_the_others(tiny, tmp_path, losses, monkeypatch):
    points = make_points(tiny, Ablation([{}], (0, 1)), tmp_path / "sweep")
    original = Evaluate.measure

    def measure(self, trainer):
        if self.config.seed == 1:
            raise FloatingPointError("no luck")
        return original(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "measure", measure)
        assert train_points(points, replication=Replication(2)) == [points[1]]
    assert "no luck" in (points[1].workdir / "error.txt").read_text()
    assert [each["how"] for each in read_attempts(points[1].workdir)] == ["failed"]
    train(points[0].config, tmp_path / "alone")
    check_equal(points[0].workdir, tmp_path / "alone", losses)
