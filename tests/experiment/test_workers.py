"""Workers of one machine are started, watched and ended together."""

import os
import signal
import sys

import pytest

from lm.devices.shares import Share
from lm.experiment.attempts import read_attempts
from lm.experiment.workers import REPLACED, run_workers
from tests.commands import small_decoder, start_fresh, until

EACH = [Share({"WORKER": "1"}), Share({"WORKER": "2"})]


def python(code):
    return [sys.executable, "-S", "-c", f"import os, signal, sys, time\n{code}"]


def test_each_worker_has_its_share_and_its_lines_are_marked(capfd):
    core = min(os.sched_getaffinity(0))
    shares = [Share({"WORKER": "a"}, frozenset({core})), Share({"WORKER": "b"})]
    code = "print(os.environ['WORKER'], len(os.sched_getaffinity(0)) == 1)\n"
    code += "print('aside', file=sys.stderr)"
    before = os.sched_getaffinity(0)
    assert run_workers(python(code), shares) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[1] a True", f"[2] b {len(before) == 1}"]
    assert sorted(err.splitlines()) == ["[1] aside", "[2] aside"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(("statuses", "status"), [((0, 1), 0), ((1, 2), 2), ((1, 1), 1)])
def test_the_status_is_the_worst_unless_a_worker_saw_all_done(statuses, status):
    code = f"sys.exit({statuses}[int(os.environ['WORKER']) - 1])"
    assert run_workers(python(code), EACH) == status


def test_a_worker_that_is_killed_is_replaced(tmp_path, capfd):
    code = f"""
begun = {str(tmp_path / "begun")!r}
if os.path.exists(begun):
    sys.exit(0)
open(begun, "x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_workers(python(code), EACH[:1]) == 0
    assert "worker 1 was ended by SIGKILL; another takes its place" in capfd.readouterr().err


def test_a_worker_that_is_killed_again_and_again_is_given_up(capfd):
    code = "if os.environ['WORKER'] == '2': os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(1)"
    assert run_workers(python(code), EACH) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 + REPLACED and lines[-1].endswith("none takes its place any more")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_all_workers_which_are_waited_for(number, capfd):
    code = f"""
def stop(*_):
    time.sleep(0.05)
    print("saved", flush=True)
    sys.exit(0)
signal.signal({int(number)}, stop)
if os.environ["WORKER"] == "2":
    os.kill(os.getppid(), {int(number)})
time.sleep(60)
"""
    before = signal.getsignal(number)
    # The other may not have come to its handler.
    assert run_workers(python(code), EACH) == 128 + number
    assert "[2] saved" in capfd.readouterr().out.splitlines()
    assert signal.getsignal(number) is before


def ways(folder):
    return [each.get("how") for each in read_attempts(folder)]


@pytest.mark.slow
def test_a_sweep_of_two_workers_is_stopped_and_goes_on(tmp_path, corpus_folder, cache):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    command = [
        "sweep",
        "--config=configs/attention.py:tiny",
        "--seeds=1",
        "--jobs=2",
        f"--workdir={tmp_path / 'sweep'}",
        *small_decoder(corpus_folder, cache),
        "--config.steps=1000",
        "--config.evaluation.every=0",
    ]
    process = start_fresh(*command)

    def both_train():
        sizes = [path.stat().st_size for path in tmp_path.glob("sweep/*/metrics.jsonl")]
        return len(sizes) == 2 and all(sizes)

    until(lambda: both_train() or process.poll() is not None, seconds=600)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "[1] " in out and "[2] " in out and err.count("stopped at step") == 2
    assert [ways(folder) for folder in tmp_path.glob("sweep/*seed*")] == [["interrupted"]] * 2
    process = start_fresh(*command)
    _, err = process.communicate()
    assert process.returncode == 0, err
    found = sorted(ways(folder) for folder in tmp_path.glob("sweep/*seed*"))
    assert found == [["finished"]] * 2 + [["interrupted", "finished"]] * 2
