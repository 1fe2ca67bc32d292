"""Commands of several processes, each with devices of its own."""

import contextlib
import os
import re
import signal
import socket
import time

import pytest

from lm.checkpoints.checkpointer import Checkpoints
from lm.training.metric_writer import read_metrics
from tests.commands import Started, run, small_decoder, until
from tests.conftest import QUICK

METRICS = "metrics.jsonl"
DEVICES = 8  # of all processes together


def flags(number):
    """XLA's, of each of `number` processes. A busy machine may keep a device waiting for long."""
    patient = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    return f"--xla_force_host_platform_device_count={DEVICES // number} {patient} {QUICK}"


@pytest.fixture
def arguments(corpus_folder, cache):
    """Of a run of 6 steps, but for its workdir."""
    return (
        "train",
        "--config=configs/clm.py:tiny",
        *small_decoder(corpus_folder, cache),
        "--config.batch_size=8",
        "--config.steps=6",
        "--config.schedule.name=constant",
        "--config.schedule.warmup_steps=1",
        "--config.evaluation.every=3",
        "--config.checkpoint.every=3",
    )


@contextlib.contextmanager
def started(number, arguments, folder, *, own=lambda process: ()):
    """A command in `number` processes, which share the devices; `own` gives each more flags."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = [f"--coordinator=localhost:{port}", f"--num_processes={number}"]
    processes = []
    for process in range(number):
        (folder / str(process)).mkdir(parents=True, exist_ok=True)
        line = (*arguments, *place, f"--process_id={process}", *own(process))
        processes.append(Started(line, folder / str(process), flags=flags(number)))
    try:
        yield processes
    finally:
        for each in processes:
            each.process.kill()


def together(number, arguments, folder, **options):
    """What each of `number` processes has ended with."""
    with started(number, arguments, folder, **options) as processes:
        return [each.wait() for each in processes]


def alike(one, other):
    """Whether two runs have the same numbers, but for the rounding of sums in another order."""
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    return True


def lines(finished):
    return [line for line in finished.stderr.splitlines() if line]


def test_two_processes_train_as_one_and_the_first_writes(arguments, losses, tmp_path):
    runs = tmp_path / "runs"
    first, second = together(2, [*arguments, f"--workdir={runs}/two"], tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "eval: " in first.stdout
    assert not second.stdout and not lines(second)
    assert run(*arguments, f"--workdir={runs}/one", flags=flags(1)).returncode == 0
    assert alike(losses(runs / "two"), losses(runs / "one"))


@pytest.fixture
def long(arguments, tmp_path):
    """Of a run that ends by a signal alone."""
    workdir = tmp_path / "runs" / "long"
    return workdir, [*arguments, "--config.steps=1000000", f"--workdir={workdir}"]


def wait_for_step(workdir, number):
    until(lambda: any(record["step"] >= number for record in read_metrics(workdir / METRICS)))


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_process_saves_in_all_at_one_step_and_the_run_goes_on(
    long, arguments, losses, tmp_path, signalled
):
    workdir, command = long
    with started(2, command, tmp_path) as processes:
        wait_for_step(workdir, 4)
        os.kill(processes[signalled].process.pid, signal.SIGTERM)
        ended = [each.wait() for each in processes]
    assert [each.returncode for each in ended] == [128 + signal.SIGTERM] * 2
    (step,) = {re.search(r"stopped at step (\d+), saved", lines(each)[-1])[1] for each in ended}
    assert Checkpoints(workdir).latest == int(step) > 4
    steps = f"--config.steps={int(step) + 3}"
    again = together(2, [*arguments, steps, f"--workdir={workdir}"], tmp_path)
    assert f"resumes at step {step}" in again[0].stdout, again[0].stderr
    whole = together(2, [*arguments, steps, f"--workdir={tmp_path}/runs/whole"], tmp_path)
    assert [each.returncode for each in (*again, *whole)] == [0] * 4
    trained = [each for each in losses(workdir) if "train/loss" in each]
    assert trained == [each for each in losses(tmp_path / "runs/whole") if "train/loss" in each]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_lost_process_ends_the_other_within_a_minute_with_one_line(long, tmp_path, killed):
    workdir, command = long
    with started(2, command, tmp_path) as processes:
        wait_for_step(workdir, 4)
        begun = time.monotonic()
        processes[killed].process.kill()
        left = processes[1 - killed].wait()
    assert time.monotonic() - begun < 60
    assert left.returncode == 1
    said = [line for line in lines(left) if not line.startswith(("train: ", "compiling "))]
    assert len(said) == 1, left.stderr
    assert re.match(rf"run.py: lost process {killed} of 2, which ended or cannot", said[0])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [("-1", "1", "1"), ("1", "2", "4"), ("1", "-1", "1")])
def test_a_run_goes_on_with_other_numbers_of_processes(arguments, losses, tmp_path, mesh):
    """With the last mesh parameters are split over processes, with the middle one heads as well."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    command = [*arguments, *(f"--config.mesh.{axis}={size}" for axis, size in axes)]
    command += ["--config.model.num_heads=4", "--config.data.vocab_size=None"]
    whole, workdir = tmp_path / "runs/whole", tmp_path / "runs/parts"
    steps = "--config.steps=12"
    assert run(*command, steps, f"--workdir={whole}", flags=flags(1)).returncode == 0
    for done, number in ((3, 2), (6, 1), (9, 4), (12, 2)):
        ended = together(
            number, [*command, f"--config.steps={done}", f"--workdir={workdir}"], tmp_path
        )
        assert [each.returncode for each in ended] == [0] * number, ended[0].stderr
    held_out = [each for each in losses(workdir) if "train/loss" in each]
    assert alike(held_out, [each for each in losses(whole) if "train/loss" in each])


@pytest.mark.slow
@pytest.mark.parametrize(
    "own, told",
    [
        (["--config.model.d_model=32"], "process 1 has config.model.d_model = 32 and process 0"),
        (["--workdir=elsewhere"], "process 1 has --workdir = 'elsewhere' and process 0 has '"),
    ],
)
def test_processes_of_different_commands_end_with_one_line(arguments, tmp_path, own, told):
    command = [*arguments, f"--workdir={tmp_path}/runs/one"]
    ended = together(2, command, tmp_path, own=lambda process: own if process else ())
    for each in ended:
        assert each.returncode == 2
        (line,) = lines(each)
        assert told in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_failure_of_one_process_ends_the_other_with_what_it_says(arguments, tmp_path):
    workdir = tmp_path / "runs" / "one"
    workdir.parent.mkdir()
    command = [*arguments, "--config.steps=1000000", f"--workdir={workdir}"]
    with started(2, command, tmp_path) as processes:
        wait_for_step(workdir, 4)
        (claim,) = workdir.glob(".claim-*")
        claim.write_text("{}")  # as if another command had taken over
        first, second = (each.wait() for each in processes)
    assert first.returncode == 2 and "taken over by another process" in lines(first)[-1]
    assert second.returncode == 1
    assert "process 0 of 2 has ended: " in lines(second)[-1]
    assert "taken over by another process" in lines(second)[-1]
