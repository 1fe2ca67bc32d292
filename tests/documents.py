"""Reads the README and the pages of docs/: their blocks, commands and names."""

import pathlib
import re
import shlex
import shutil
import tempfile
from typing import NamedTuple

from tests.commands import ROOT, Started, run, until
from tests.conftest import QUICK

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# Lines that set up an environment or check the project; .ci/run has them.
SETUP = ("python3 -m venv", ".venv/bin/", "pip install", "bash .ci/run", "mkdocs ", "jupyter ")
# Commands that take no time as they are.
SMALL = ("compare", "gallery", "launch", "reproduce", "status")
TWO_ROWS = """

every = sweep


def sweep(arg=None):
    return list(every(arg))[:2]
"""


class Block(NamedTuple):
    """A fenced block: its language, the file that it shows, and its text."""

    language: str
    title: str
    text: str


class Shown(NamedTuple):
    """A command as it is printed, and the status that it is to end with."""

    arguments: list[str]
    status: int


def blocks(page):
    return [Block(*found.groups()) for found in FENCE.finditer(page.read_text())]


def commands(page):
    """The commands of run.py that a page shows."""
    shell = [block.text for block in blocks(page) if block.language == "bash"]
    return commands_of("".join(shell))


def commands_of(text):
    """The commands of run.py in the lines of a shell block."""
    found = []
    for line in lines_of(text):
        line, _, remark = line.partition("  # status ")
        program, *arguments = shlex.split(line)
        if (program, arguments[0]) == ("python", "run.py"):
            found.append(Shown(arguments[1:], int(remark or 0)))
    return found


def lines_of(text):
    """The lines of a shell block, without those that set up."""
    return [line for line in text.splitlines() if not line.startswith(SETUP)]


def folder_for_commands(folder):
    """Makes the folder in which commands run: with run.py, and the configs, of two rows each."""
    shutil.copy(ROOT / "run.py", folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    for config in folder.glob("configs/*.py"):
        text = config.read_text()
        config.write_text(text + TWO_ROWS if "def sweep(" in text else text)
    return folder


def write_files(page, folder):
    """Writes the files that a page shows."""
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def smaller(arguments, corpus, cache):
    """The command at a size that takes seconds."""
    settings = {
        "cache_dir": cache,
        "data.source": f"files:{corpus}/*.txt",
        "data.validation_fraction": 0.2,
        "data.seq_len": 32,
        "steps": 3,
        "schedule.warmup_steps": 1,
        "evaluation.num_examples": 16,
        "model.num_layers": 1,
        "model.d_model": 16,
        "log.trackers": (),
    }
    if arguments[0] in SMALL:
        return [*arguments]
    given = {a.partition("=")[0].removeprefix("--config.") for a in arguments}
    text = " ".join(arguments)
    if arguments[0] == "table" and "--config=" not in text:
        return [*arguments]
    if "--config=" not in text:
        return [*arguments, f"--cache_dir={cache}"]
    if "continual.sources" in given:
        given.add("data.source")
    if "init_from=hf:" in text:
        given |= {"model.num_layers", "model.d_model"}
    if "configs/output" in text:
        settings["data.vocab_size"] = 300
    added = [f"--config.{key}={value}" for key, value in settings.items() if key not in given]
    seeds = ["--seeds=2"] if arguments[0] in ("sweep", "table") and "seeds" not in text else []
    return [*arguments, *added, *seeds]


def run_smaller(shown, folder, corpus, cache):
    """Runs a command at a small size and asserts its status; a server until it is ready."""
    arguments = smaller(shown.arguments, corpus, cache)
    if shown.arguments[0] == "serve":
        finished = serve_once(arguments, folder)
    else:
        finished = run(*arguments, cwd=folder, flags=QUICK)
    command = " ".join(shown.arguments)
    assert finished.returncode == shown.status, f"{command}\n{finished.stderr}"
    return finished


def serve_once(arguments, folder):
    """Starts a server on a free port, and ends it by a signal when it answers."""
    with tempfile.TemporaryDirectory() as printed:
        started = Started((*arguments, "--port=0"), pathlib.Path(printed), folder, QUICK)
        process, out = started.process, started.out
        until(lambda: not process.is_alive() or (out.exists() and "ready" in out.read_text()), 600)
        process.terminate()
        return started.wait()
