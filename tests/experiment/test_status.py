"""The status of runs is read from their folders: without the config, and without JAX."""

import json
import os
import subprocess
import sys
import time

import pytest
from etils import epath

from lm.errors import UserError
from lm.experiment.ablation import sweep as sweep_module
from lm.experiment.ablation.points import Ablation, make_points
from lm.experiment.ablation.sweep import train_points
from lm.experiment.claim import STALE
from lm.experiment.failures import reason_of
from lm.experiment.point_list import ListedPoint, record_points
from lm.experiment.status import describe_status, run_statuses
from lm.experiment.train import train
from tests.claims import held_elsewhere, write_claim
from tests.commands import ROOT, run


def begin(folder, step=12, checkpoint=10):
    """A run as it is after some steps."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"steps": 20, "epochs": null}')
    (folder / "metrics.jsonl").write_text(f'{{"step": {step}}}\n{{"step": 99, "trai')
    if checkpoint:
        saved = folder / "checkpoints" / str(checkpoint)
        saved.mkdir(parents=True)
        (saved / "_CHECKPOINT_METADATA").write_text("{}")
        (folder / "checkpoints" / f"{checkpoint + 5}.orbax-checkpoint-tmp").mkdir()
        past = time.time() - 300
        os.utime(saved / "_CHECKPOINT_METADATA", (past, past))


def finish(folder):
    begin(folder)
    (folder / "result.json").write_text('{"steps": 20, "seconds": 90.0, "config_hash": "0"}')


def states(folder):
    return {each.name: (each.state, each.details) for each in run_statuses(folder)}


def test_every_run_of_an_ablation_has_a_line_with_its_state(tmp_path):
    folder = tmp_path / "ablation"
    finish(folder / "done")
    begin(folder / "stopped")
    begin(folder / "begun", checkpoint=None)
    begin(folder / "broken")
    trace = "Traceback (most recent call last):\n  File x\nValueError: no luck\nat all\n"
    (folder / "broken" / "error.txt").write_text(trace)
    begin(folder / "busy")
    write_claim(folder / "busy", machine="other", host="node7", pid=42)
    (folder / "launch").mkdir()
    names = ("done", "never", "stopped", "begun", "broken")
    record_points(folder, [ListedPoint(name, 0, epath.Path(folder / name)) for name in names])
    header, *lines = describe_status(folder)
    assert header.endswith("6 runs: 1 finished, 1 running, 2 interrupted, 1 failed, 1 missing")
    assert [line.split()[0] for line in lines] == [
        *("done", "never", "stopped", "begun", "broken"),  # as the sweep has them
        "busy",
    ]
    found = states(folder)
    assert found["done"] == ("finished", "20 steps in 90 s")
    assert found["never"] == ("missing", "")
    assert found["stopped"] == ("interrupted", "step 12 of 20; checkpoint of step 10, 5 min ago")
    assert found["begun"] == ("interrupted", "step 12 of 20; no checkpoint")
    assert found["broken"] == ("failed", "ValueError: no luck")
    state, details = found["busy"]
    assert state == "running"
    assert "checkpoint of step 10, 5 min ago; held by process 42 on node7 since" in details
    assert details.endswith(" s ago")


def test_a_claim_without_a_sign_of_life_is_of_an_interrupted_run(tmp_path):
    begin(tmp_path / "run")
    path = write_claim(tmp_path / "run", machine="other", host="node7")
    past = time.time() - STALE - 100
    os.utime(path, (past, past))
    (line,) = describe_status(tmp_path / "run")
    assert "interrupted: step 12 of 20; checkpoint of step 10" in line
    assert "was held by process" in line and "on node7 since" in line
    assert line.endswith("seen 4 min ago")


def test_the_checkpoint_of_a_chain_is_that_of_its_last_run(tmp_path):
    begin(tmp_path / "chain", checkpoint=None)
    begin(tmp_path / "chain" / "1", checkpoint=20)
    begin(tmp_path / "chain" / "2", checkpoint=5)
    begin(tmp_path / "chain" / "3", checkpoint=None)
    assert "checkpoint of step 5," in describe_status(tmp_path / "chain")[0]


def test_a_sweep_that_has_just_begun_is_running(tmp_path):
    with held_elsewhere(tmp_path / "new"):
        header, line = describe_status(tmp_path / "new")
    assert header.endswith("1 run: 1 running")
    assert f"just beginning; held by process {os.getpid()}" in line


def test_a_real_run_is_read_as_it_ended(small_config, tmp_path):
    train(small_config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (line,) = describe_status(tmp_path / "run")
    assert "interrupted: step 12 of 12; checkpoint of step 12, " in line


def test_a_sweep_records_its_points_once_it_has_begun(small_config, tmp_path, monkeypatch):
    rows = [{"attention.weighting": "softmax"}, {"attention.weighting": "sparsemax"}]
    found = make_points(small_config, Ablation(rows, (0, 1)), tmp_path / "sweep")
    monkeypatch.setattr(sweep_module._Sweep, "train", lambda *_: None)
    for share in (False, True):
        assert train_points(found, share) == []
        assert list(states(tmp_path / "sweep")) == [point.workdir.name for point in found]
    assert {state for state, _ in states(tmp_path / "sweep").values()} == {"missing"}


@pytest.mark.parametrize(
    ("made", "message"),
    [(False, "does not exist"), (True, "is empty or holds no run; give the --workdir")],
)
def test_a_folder_without_a_run_is_one_line_and_status_2(made, message, tmp_path):
    if made:
        (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=message):
        describe_status(tmp_path / "runs")
    finished = run("status", f"--workdir={tmp_path / 'runs'}")
    assert finished.returncode == 2 and message in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_damaged_files_hide_no_run(tmp_path):
    begin(tmp_path / "all" / "run")
    for name in ("config.json", "result.json", "metrics.jsonl"):
        (tmp_path / "all" / "run" / name).write_text('{"a')
    (tmp_path / "all" / "points.json").write_text("[]")
    assert states(tmp_path / "all")["run"][0] == "interrupted"


def test_the_reason_is_the_first_line_of_the_last_error():
    first = "Traceback (most recent call last):\n  File a\nKeyError: 1\n\nDuring it:\n\n"
    second = "Traceback (most recent call last):\n  File b\n    x = 1\nlm.UserError: two\nlines\n"
    assert reason_of(first + second) == "lm.UserError: two"
    assert reason_of("") == ""


def test_the_command_prints_the_lines_and_imports_no_jax(tmp_path):
    finish(tmp_path / "run")
    code = (
        "import run, sys; code = run.main(sys.argv); sys.exit(code + 10 * ('jax' in sys.modules))"
    )
    command = [sys.executable, "-c", code, "status", f"--workdir={tmp_path / 'run'}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{tmp_path / 'run'}: finished: 20 steps in 90 s\n"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 20
