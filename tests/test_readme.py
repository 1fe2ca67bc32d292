"""Every command of the README runs, as printed but for a smaller size."""

import re
import shutil

import pytest

from tests.commands import ROOT, run
from tests.conftest import QUICK

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python (run\.py [^\n]*--workdir=[^\n]*)", README)
TWO_ROWS = """

every = sweep


def sweep(arg=None):
    return list(every(arg))[:2]
"""


@pytest.fixture(scope="module")
def smaller(corpus_folder, cache):
    return [
        f"--config.cache_dir={cache}",
        f"--config.data.source=files:{corpus_folder}/*.txt",
        "--config.data.validation_fraction=0.2",
        "--config.data.seq_len=32",
        "--config.steps=3",
        "--config.schedule.warmup_steps=1",
        "--config.evaluation.num_examples=16",
        "--config.model.num_layers=1",
        "--config.model.d_model=16",
        "--config.log.tensorboard=False",
    ]


def test_the_readme_shows_every_command():
    assert {command.split()[1] for command in COMMANDS} == {
        "train", "eval", "embed", "generate", "diagnose", "sweep", "table", "gallery",
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: with the configs, of two rows each."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for config in folder.glob("configs/*.py"):
        text = config.read_text()
        config.write_text(text + TWO_ROWS if "def sweep(" in text else text)
    return folder


def test_every_run_command_of_the_readme_runs(smaller, folder, cache):
    for command in COMMANDS:
        # The quotes of the prompts are the shell's.
        _, *arguments = re.findall(r"(?:[^\s\"]|\"[^\"]*\")+", command)
        arguments = [a.replace('"', "") for a in arguments]
        if any(a.startswith("--config=") for a in arguments):
            arguments += smaller
            if "output" in command:
                arguments += ["--config.data.vocab_size=300", "--seeds=2"]
        elif arguments[0] != "gallery":
            arguments.append(f"--cache={cache}")
        finished = run(*arguments, cwd=folder, flags=QUICK)  # One device, as on a laptop.
        assert finished.returncode == 0, f"{command}\n{finished.stderr}"
    table = (folder / "runs" / "output" / "table.md").read_text()
    assert "tied=False" in table and "not separable" in table
    assert len(list(folder.glob("runs/output/*seed1-*"))) == 2
    assert not list(folder.glob("runs/output/*seed2-*"))
