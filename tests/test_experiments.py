"""What an experiment imports from the rest of the project is there, though it is run seldom."""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = sorted(ROOT.joinpath("experiments").rglob("*.py"))
OURS = ("lm", "configs", "experiments")
EVERY = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


@EVERY
def test_an_experiment_can_be_imported(path):
    try:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in (*OURS, *(each.stem for each in EXPERIMENTS)):
            raise
        pytest.skip(f"{error.name} is not installed")


@EVERY
def test_names_that_an_experiment_takes_from_the_project_exist(path):
    # Also those that a function imports when it is called.
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in OURS:
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
