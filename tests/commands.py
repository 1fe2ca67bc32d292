"""Commands of run.py, each in a process of its own that has imported everything beforehand.

A fresh Python spends seconds on imports. The fork server of multiprocessing imports once, and each
command is a fork of it before JAX has started.
"""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "run",
        "lm.experiment.ablation.report.output",
        "lm.checkpoints.restore",
        "lm.experiment.ablation.sweep",
        "lm.experiment.train",
    ]
)


def run(*arguments: str, cwd=ROOT, flags: str | None = None) -> subprocess.CompletedProcess:
    """Waits for a command, under XLA's flags; its status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        return Started(arguments, pathlib.Path(folder), cwd, flags).wait()


class Started:
    """A command that runs; what it prints goes to files in a folder."""

    def __init__(self, arguments, folder: pathlib.Path, cwd=ROOT, flags: str | None = None):
        self.arguments, self.out, self.err = arguments, folder / "out", folder / "err"
        command = arguments, cwd, flags, self.out, self.err
        self.process = SERVER.Process(target=_command, args=command)
        self.process.start()

    def wait(self) -> subprocess.CompletedProcess:
        """Its status and what it printed, once it has ended."""
        self.process.join()
        status, out, err = self.process.exitcode, self.out.read_text(), self.err.read_text()
        return subprocess.CompletedProcess(self.arguments, status, out, err)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for something that commands do meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def small_decoder(corpus_folder: pathlib.Path, cache: pathlib.Path) -> tuple[str, ...]:
    """Flags that train a decoder of one layer on the texts of a folder, with a line a step."""
    return (
        f"--config.cache_dir={cache}",
        f"--config.data.source=files:{corpus_folder}/*.txt",
        "--config.data.validation_fraction=0.2",
        "--config.data.seq_len=32",
        "--config.model.num_layers=1",
        "--config.model.d_model=16",
        "--config.evaluation.num_examples=16",
        "--config.log.every=1",
        "--config.log.trackers=()",
    )


def start_fresh(*arguments: str) -> subprocess.Popen:
    """A command in a Python of its own, on one device, as where it is killed while it runs."""
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _command(arguments, cwd, flags, out, err) -> None:
    import run

    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    os.chdir(cwd)
    if flags is not None:
        os.environ["XLA_FLAGS"] = flags
    sys.argv = ["run.py", *arguments]
    sys.exit(run.main(sys.argv))
