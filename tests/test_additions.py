"""The diffs of the pages in docs/add/ apply to the code as it is, and what they add trains."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.conftest import QUICK
from tests.documents import blocks, commands_of, smaller, write_files

PAGES = sorted((ROOT / "docs" / "add").glob("*.md"))
OF_MINUTES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem != "weighting" else [])
    for page in PAGES
]


def apply(page, folder, *options):
    """Applies the diff of a page to the tree in a folder."""
    diff = page.with_suffix(".diff")
    command = ["git", "apply", *options, str(diff)]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_diff_of_a_page_applies(page):
    applied = apply(page, ROOT, "--check")
    assert not applied.returncode, f"{applied.stderr}\nmake {page.stem}.diff anew from the code"
    assert f'--8<-- "{page.stem}.diff"' in page.read_text()


@pytest.mark.parametrize("page", OF_MINUTES)
def test_what_a_page_adds_trains(page, tmp_path, corpus_folder, cache):
    for name in ("lm", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "run.py", tmp_path)
    applied = apply(page, tmp_path)
    assert not applied.returncode, applied.stderr
    write_files(page, tmp_path)
    for block in blocks(page):
        if block.language == "python" and not block.title:
            run_python(["-c", block.text], tmp_path)
        for shown in commands_of(block.text) if block.language == "bash" else ():
            arguments = smaller(shown.arguments, corpus_folder, cache)
            run_python(["run.py", *arguments], tmp_path)


def run_python(arguments, folder):
    environment = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not finished.returncode, f"{arguments}\n{finished.stderr}"
