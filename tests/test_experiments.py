"""What an experiment imports from the rest of the project is there, though it is run seldom."""

import ast
import importlib
import pathlib

import pytest

EXPERIMENTS = sorted(pathlib.Path(__file__).parents[1].joinpath("experiments").glob("*.py"))
OURS = ("lm", "configs", "experiments")
EVERY = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


@EVERY
def test_an_experiment_can_be_imported(path):
    try:
        importlib.import_module(f"experiments.{path.stem}")
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
