"""Trackers have every line of metrics.jsonl, and know a run that goes on."""

import importlib.machinery
import json
import sys
import types

import pytest
from etils import epath

from lm.config import override
from lm.errors import UserError
from lm.experiment.train import train
from lm.training import metric_writer
from lm.training.metric_writer import open_writer
from lm.training.trackers import check_trackers, open_trackers
from lm.training.validate import check


class FakeRun:
    """A run of wandb or of trackio that notes what it is given."""

    def __init__(self, options):
        self.options, self.rows, self.axes, self.finished = options, [], {}, False

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, metrics, step=None):
        self.rows.append({**metrics} if step is None else {"step": step, **metrics})

    def finish(self):
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request, monkeypatch):
    """The name of a tracker, and the runs that its fake module has begun."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    module = types.ModuleType(request.param)
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    module.__dict__.update(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, runs


def test_a_tracker_has_the_lines_and_a_resumed_run_is_the_same_there(
    small_config, tracker, tmp_path
):
    name, runs = tracker
    config = override(small_config, {"log.trackers": (name,), "log.project": "ours"})
    for start in (0, 1):
        writer = open_writer(config, tmp_path, start, start)
        writer.write(start + 1, {"train/loss": 2.0 - start})
        writer.close()
    assert [run.rows for run in runs] == [
        [{"step": 1, "train/loss": 2.0}],
        [{"step": 2, "train/loss": 1.0}],
    ]
    assert all(run.finished and run.options["resume"] == "allow" for run in runs)
    first, second = (run.options for run in runs)
    assert first == second and first["project"] == "ours" and first["config"]["steps"] == 12
    assert (tmp_path / "run_id.txt").read_text().strip() in first["name"]
    assert name == "trackio" or runs[0].axes == {"*": "step"}  # W&B takes no step twice


def test_two_workdirs_are_two_runs(small_config, tracker, tmp_path):
    name, runs = tracker
    config = override(small_config, {"log.trackers": (name,)})
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        open_trackers(config, epath.Path(tmp_path / folder), 0)
    assert len({run.options["name"] for run in runs}) == 2


def test_a_finished_run_has_closed_its_tracker(small_config, tracker, tmp_path):
    name, runs = tracker
    config = override(small_config, {"log.trackers": (name,), "steps": 3})
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert runs[0].rows == [{k: v for k, v in row.items() if k != "seconds"} for row in written]
    assert len(runs) == 1 and runs[0].finished


def test_processes_other_than_the_first_open_no_tracker(
    small_config, tracker, tmp_path, monkeypatch
):
    name, runs = tracker
    monkeypatch.setattr(metric_writer, "is_main", lambda: False)
    assert open_writer(override(small_config, {"log.trackers": (name,)}), tmp_path, 0, 0) is None
    assert not runs


def test_a_package_that_is_missing_is_named_with_the_remedy_before_any_work(
    small_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'wandb, which is not installed: pip install -e "\.\[trac'):
        check_trackers(["wandb"])
    config = override(small_config, {"log.trackers": ("trackio",)})
    with pytest.raises(UserError, match="trackio, which is not installed"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_begin_is_one_line(small_config, tmp_path, monkeypatch, tracker):
    name, _ = tracker

    def init(**_):
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(sys.modules[name], "init", init)
    config = override(small_config, {"log.trackers": (name,)})
    with pytest.raises(UserError, match=f"{name} cannot begin a run: No API key configured;"):
        open_trackers(config, epath.Path(tmp_path), 0)


def test_an_unknown_tracker_is_refused_by_name(small_config):
    with pytest.raises(UserError, match=r"config.log.trackers = 'wandbb' is not one of .* wandb"):
        check(override(small_config, {"log.trackers": ("wandbb",)}))


def test_wandb_works_offline(small_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = override(small_config, {"log.trackers": ("wandb",)})
    for start in (0, 1):
        writer = open_writer(config, tmp_path, start, start)
        writer.write(start + 1, {"train/loss": 1.0})
        writer.close()
    run_id = (tmp_path / "run_id.txt").read_text().strip()
    kept = list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert kept and all(path.stat().st_size for path in kept)
