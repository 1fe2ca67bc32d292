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

ROOT = pathlib.Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "run",
        "lm.experiment.ablation.table",
        "lm.checkpoints.restore",
        "lm.experiment.ablation.sweep",
        "lm.experiment.train",
    ]
)


def run(*arguments: str, cwd=ROOT, flags: str | None = None) -> subprocess.CompletedProcess:
    """Waits for a command, under XLA's flags; its status and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = pathlib.Path(folder, "out"), pathlib.Path(folder, "err")
        process = SERVER.Process(target=_command, args=(arguments, cwd, flags, out, err))
        process.start()
        process.join()
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text(), err.read_text()
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
