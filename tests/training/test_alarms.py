"""A spike of the loss or a large gradient raises an alarm, which is answered by the policy."""

import itertools
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.restore import restore
from lm.checkpoints.resume import check_changes
from lm.config import override
from lm.devices import sharding
from lm.errors import Interrupted, UserError
from lm.experiment import run as run_module
from lm.experiment.rollback import Rollbacks
from lm.experiment.train import train
from lm.training.config import resolve
from lm.training.hooks import Alarm, RollBack
from lm.training.metric_writer import read_metrics
from lm.training.program import build_program
from lm.training.trainer import Step
from lm.training.validate import check
from tests.conftest import QUICK
from tests.training.test_step import some_rows

SPIKE = {"alarm.loss_spike": 2.0, "alarm.window": 4}
SKIP, BACK = SPIKE | {"alarm.policy": "skip"}, SPIKE | {"alarm.policy": "rollback"}
BAD = 8  # the batch of step 9


@pytest.fixture(scope="module")
def short(base_config):
    settings = {"steps": 12, "log.every": 1, "evaluation.every": 0, "checkpoint.every": 4}
    rate = {"optimizer.learning_rate": 0.01, "alarm.max_rollbacks": 1}
    return override(base_config, settings | rate)


@pytest.fixture
def spiked(monkeypatch):
    """One batch is of a token that no text has. A function adds such batches, and numbers of
    batches at which a signal comes when they are first asked for.
    """
    original, bad, stops = run_module.local_train_batches, {BAD}, set()

    def batches(*arguments, start, **keywords):
        for number, rows in enumerate(original(*arguments, start=start, **keywords), start):
            if number in stops:
                stops.remove(number)
                signal.raise_signal(signal.SIGINT)
            yield rows | {"tokens": np.full_like(rows["tokens"], 200)} if number in bad else rows

    def change(also=(), stop=()):
        bad.update(also)
        stops.update(stop)

    monkeypatch.setattr(run_module, "local_train_batches", batches)
    return change


def trained(workdir):
    """The lines of a run's steps."""
    return [r for r in read_metrics(workdir / "metrics.jsonl") if "train/loss" in r]


def column(workdir, name):
    return [record[name] for record in trained(workdir)]


def final_params(workdir):
    return jax.tree.leaves(restore(workdir).params)


def test_warn_says_which_step_and_why_and_changes_nothing(short, spiked, tmp_path, capsys):
    train(short, tmp_path / "off")
    assert "loss_spike" not in capsys.readouterr().err
    train(override(short, SPIKE), tmp_path / "warn")
    said = capsys.readouterr().err
    assert re.findall(
        r"step (\d+): the loss \S+ is above \S+, by config.alarm.loss_spike", said
    ) == ["9"]
    assert [r["step"] for r in trained(tmp_path / "warn") if r["train/alarm"]] == [9]
    for name in ("train/loss", "train/gradient_norm"):
        assert column(tmp_path / "warn", name) == column(tmp_path / "off", name)


def test_an_alarm_has_a_line_of_metrics_whatever_lines_there_are(short, spiked, tmp_path):
    train(override(short, SPIKE | {"log.every": 6}), tmp_path / "run")
    assert column(tmp_path / "run", "step") == [1, 6, 9, 12]
    assert column(tmp_path / "run", "train/alarm") == [0, 0, 1, 0]


def test_skip_leaves_the_update_out(short, spiked, tmp_path, capsys):
    train(override(short, SKIP), tmp_path / "skip")
    assert "by config.alarm.loss_spike; its update is left out" in capsys.readouterr().err
    train(short, tmp_path / "off")
    skip, off = (column(tmp_path / name, "train/loss") for name in ("skip", "off"))
    np.testing.assert_allclose(skip[:9], off[:9], rtol=1e-6)
    assert abs(skip[9] - off[9]) > 1e-3
    rates = (column(tmp_path / name, "train/learning_rate") for name in ("skip", "off"))
    assert next(rates) == next(rates)


# As outside of tests: without optimization, XLA rounds in places of its own in every program.
OPTIMIZED: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if "fusion_emitters" in QUICK:  # which newer versions of XLA always use
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True


def steps_of(config, count, options=None):
    """The states before and after some steps on random rows, and the metrics of each step."""
    program = build_program(config, 256)
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))
        first, metrics = jax.device_get(state), []
        batches = [sharding.global_batch(program.mesh, some_rows(config, i)) for i in range(count)]
        lowered = program.train_step.lower(state, batches[0], jax.random.key(1))
        train_step = lowered.compile(options)
        for rows in batches:
            state, found = train_step(state, rows, jax.random.key(1))
            metrics.append(jax.device_get(found))
    return first, jax.device_get(state), metrics


def test_a_skipped_step_keeps_parameters_and_averages_and_counts_on(short):
    settings = {"alarm.grad_norm": 1e-6, "alarm.policy": "skip", "optimizer.ema_decay": 0.9}
    before, after, metrics = steps_of(override(short, settings), 2)
    assert [float(each["train/alarm"]) for each in metrics] == [1, 1]
    assert after.step == 2 and after.finite
    trees = [(s.params, s.ema_params, s.opt_state) for s in (before, after)]
    counts = 0
    for old, new in zip(*map(jax.tree.leaves, trees), strict=True):
        if np.issubdtype(old.dtype, np.integer):
            counts += 1
            assert new == old + 2
        else:
            np.testing.assert_array_equal(new, old)
    assert counts  # of Adam and of the schedule


def test_skip_without_an_alarm_changes_no_digit(short):
    settings = SKIP | {"alarm.loss_spike": 50.0, "alarm.grad_norm": 1e9}
    _, off, expected = steps_of(short, 6, OPTIMIZED)
    _, skip, metrics = steps_of(override(short, settings), 6, OPTIMIZED)
    for name in ("train/loss", "train/gradient_norm"):
        assert [each[name] for each in metrics] == [each[name] for each in expected]
    leaves = map(jax.tree.leaves, ((skip.params, skip.opt_state), (off.params, off.opt_state)))
    for ours, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_without_alarms_the_step_is_the_same_program(short):
    def text(config):
        program = build_program(config, 256)
        with jax.set_mesh(program.mesh):
            rows = sharding.global_batch(program.mesh, some_rows(config))
            assert program.abstract_state.recent_losses is None
            lowered = program.train_step.lower(program.abstract_state, rows, jax.random.key(1))
            return lowered.as_text()

    off = text(short)
    assert text(override(short, {"alarm.policy": "skip", "alarm.window": 9})) == off
    assert text(override(short, {"log.profile_steps": 3, "log.trackers": ("wandb",)})) == off


def test_the_limit_is_by_median_and_absolute_deviation_of_a_full_window(short):
    alarm = resolve(override(short, {"alarm.loss_spike": 3.0, "alarm.window": 5})).alarm
    losses = alarm.initial_losses()
    assert losses.shape == (5,) and np.isnan(alarm.loss_limit(losses))
    assert np.isnan(alarm.loss_limit(losses.at[:4].set(1.0)))
    known = np.array([2.0, 9.0, 2.5, 1.0, 2.25], np.float32)
    deviation = scipy.stats.median_abs_deviation(known, scale="normal")
    expected = np.median(known) + 3.0 * deviation
    np.testing.assert_allclose(alarm.loss_limit(jnp.asarray(known)), expected, rtol=1e-4)


@pytest.fixture
def gone_back(short, spiked, tmp_path, capsys):
    """The folder of a run that went back once, and what it said."""
    train(override(short, BACK), tmp_path / "back")
    return tmp_path / "back", capsys.readouterr().err


def test_rollback_goes_on_from_the_checkpoint_with_other_data(gone_back):
    workdir, said = gone_back
    assert "goes back to step 8 and on with other data, 1 of 1 times" in said
    (record,) = read_metrics(workdir / "rollbacks.jsonl")
    assert (record["step"], record["to"]) == (9, 8)
    assert column(workdir, "step") == list(range(1, 13))
    assert not any(column(workdir, "train/alarm"))
    losses = column(workdir, "train/loss")
    assert losses[8] < losses[4]


@pytest.mark.parametrize("stop", [5, 11])
def test_a_run_that_goes_back_resumes_to_the_same_bits(short, spiked, gone_back, tmp_path, stop):
    """An interruption before saves a checkpoint of its own; one after is of the other data."""
    workdir, _ = gone_back
    spiked(stop=[stop])
    config = override(short, BACK)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "broken")
    train(config, tmp_path / "broken")
    assert column(tmp_path / "broken", "train/loss") == column(workdir, "train/loss")
    for ours, other in zip(*map(final_params, (tmp_path / "broken", workdir)), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_a_run_that_has_gone_back_often_enough_stops_in_one_line(short, spiked, tmp_path):
    spiked(also=[BAD + 1])
    config = override(short, BACK)
    for _ in range(2):  # the same command again changes nothing
        with pytest.raises(
            UserError, match=r"step 9: .* 1 of config.alarm.max_rollbacks = 1 times"
        ):
            train(config, tmp_path / "run")
        assert Checkpoints(tmp_path / "run").steps == [4, 8]
    train(override(config, {"alarm.max_rollbacks": 2}), tmp_path / "run")
    assert [r["to"] for r in read_metrics(tmp_path / "run" / "rollbacks.jsonl")] == [8, 8]


def test_an_alarm_before_any_checkpoint_stops_in_one_line(short, tmp_path):
    config = override(short, {"alarm.grad_norm": 1e-6, "alarm.policy": "rollback"})
    with pytest.raises(UserError, match=r"step 1: .* no checkpoint is there to go back to"):
        train(config, tmp_path / "run")


def test_batches_that_are_left_out_follow_from_the_file_at_any_start(tmp_path):
    lines = [{"step": 9, "to": 8}, {"step": 10, "to": 8}, {"step": 15, "to": 12}]
    (tmp_path / "rollbacks.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    rollbacks = Rollbacks(None, epath.Path(tmp_path))
    whole = [*range(8), *range(11, 15), *range(18, 24)]
    for start in (0, 5, 8, 10, 12, 13):
        found = rollbacks.batches(itertools.count, start)
        assert list(itertools.islice(found, 18 - start)) == whole[start:]


def test_a_step_that_is_not_finite_goes_back_too(short):
    alarm = Alarm(resolve(override(short, BACK)).alarm)
    step = Step(7, {}, {"finite": 0.0, "train/alarm": 0.0})
    with pytest.raises(RollBack, match="step 7: the loss or its gradient is not finite"):
        alarm.on_step(None, step)


def test_alarms_in_a_row_are_told_once(short, capsys):
    alarm = Alarm(resolve(override(short, {"alarm.grad_norm": 1.0})).alarm)
    for number, norm in enumerate([2.0, 3.0, 0.5, 4.0]):
        metrics = {"train/loss": 1.0, "train/gradient_norm": norm, "train/alarm": norm > 1.0}
        alarm.on_step(None, Step(number, {}, metrics))
    assert re.findall(r"step (\d)", capsys.readouterr().err) == ["0", "3"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alarm.policy": "skip"}, "set config.alarm.loss_spike or config.alarm.grad_norm"),
        (BACK | {"checkpoint.every": 0}, "config.checkpoint.every = 0 makes none"),
        ({"alarm.policy": "stop"}, "config.alarm.policy = 'stop' is not one of warn, skip"),
        ({"alarm.window": 2}, "config.alarm.window = 2: must be at least 4"),
    ],
)
def test_impossible_alarms_are_refused(short, settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check(override(short, settings))


def test_a_policy_may_change_when_a_run_goes_on_and_the_window_of_losses_may_not(short, tmp_path):
    check_changes(override(short, SKIP), override(short, SPIKE), tmp_path)
    check_changes(override(short, {"alarm.grad_norm": 1.0}), short, tmp_path)
    for config in (short, override(short, SPIKE | {"alarm.window": 8})):
        with pytest.raises(UserError, match="losses are in the checkpoints"):
            check_changes(config, override(short, SPIKE), tmp_path)
