"""The diffs of the pages in docs/add/ apply to the code as it is, and what they add trains."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT
from tests.conftest import QUICK
from tests.documents import blocks, commands, commands_of, smaller, write_files

PAGES = sorted((ROOT / "docs" / "add").glob("*.md"))
# What a decoder can take at once; the table of the task and that of the family are read with them.
TOGETHER = ("weighting", "mechanism", "head", "regularizer", "model_key")


@pytest.fixture
def tree(tmp_path):
    """A copy of the code."""
    for name in ("lm", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "run.py", tmp_path)
    return tmp_path


def apply(page, tree):
    """Applies the diff of a page to a tree."""
    assert f'--8<-- "{page.stem}.diff"' in page.read_text()
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", "apply", str(page.with_suffix(".diff"))]
    applied = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    remedy = (
        f"git apply --reject it, mend the code, and write git diff to docs/add/{page.stem}.diff"
    )
    assert not applied.returncode, f"{applied.stderr}\n{remedy}"


def run_python(arguments, tree):
    environment = os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert not finished.returncode, f"{arguments}\n{finished.stderr}"


def test_what_the_pages_add_trains_together(tree, corpus_folder, cache):
    arguments = ["train", "--config=configs/clm.py:tiny", "--workdir=runs/all"]
    for page in PAGES:
        apply(page, tree)
        if page.stem in TOGETHER:
            (shown,) = commands(page)
            arguments += shown.arguments[3:]
    names = "from lm.tasks import TASKS; from lm.checkpoints.hf import FAMILIES"
    both = "'rating' in TASKS and 'mistral' in FAMILIES"
    command = smaller(arguments, corpus_folder, cache)
    run_python(
        ["-c", f"{names}; assert {both}; import run, sys; sys.exit(run.cli())", *command], tree
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_adds_trains(page, tree, corpus_folder, cache):
    apply(page, tree)
    write_files(page, tree)
    for block in blocks(page):
        if block.language == "python":
            run_python(["-c", block.text], tree)
        for shown in commands_of(block.text) if block.language == "bash" else ():
            run_python(["run.py", *smaller(shown.arguments, corpus_folder, cache)], tree)
