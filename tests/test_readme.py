"""The README's first command runs at a smaller size, and its map names what there is."""

import re

import pytest

from tests.commands import ROOT
from tests.documents import Shown, folder_for_commands, run_smaller

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python (run\.py [^\n]*--workdir=[^\n]*)", README)
MAP = README.partition("## Where things are")[2].partition("## Where to go on")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_for_commands(tmp_path_factory.mktemp("readme"))


def test_the_first_command_of_the_readme_runs(folder, corpus_folder, cache):
    (command,) = COMMANDS
    run_smaller(Shown(command.split()[1:], 0), folder, corpus_folder, cache)
    assert "weighting=sigmoid" in (folder / "runs" / "attention" / "table.md").read_text()


def test_the_second_command_of_the_readme_is_what_the_checks_run():
    assert ".venv/bin/python -m pytest" in README
    assert "grep -o 'python -m pytest.*' README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_map_of_the_readme_names_every_room_and_only_files_that_exist():
    rooms = {path.parent.name for path in ROOT.glob("lm/*/__init__.py")}
    assert set(re.findall(r"^    lm/(\w+)/ ", MAP, re.MULTILINE)) == rooms
    folder = ROOT
    for line in MAP.splitlines():
        if found := re.match(r"    (\w[\w/]*/) ", line):
            folder = ROOT / found[1]
        elif re.match(r"    \w", line):
            folder = ROOT
        for name in re.findall(r"[\w/]+\.py\b|\b[\w/]+/(?=[ :;,])", line):
            assert (folder / name).exists() or (ROOT / name).exists() or hidden(folder, name), name


def hidden(folder, name):
    """Whether a file lies in a folder of the room, such as profiling/flops.py."""
    return any(folder.glob(f"**/{name}"))
