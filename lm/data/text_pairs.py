"""Reads pairs of texts: one a line, tab-separated or JSON, or the signature and the first line of
the docstring of each definition in a Python module.
"""

import ast
import json
import warnings
from collections.abc import Iterator

from lm.data.files import lines_of
from lm.errors import UserError


def of_lines(name: str, text: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (line number, pair) of a file with a pair a line; empty lines are left out.

    Args:
        name: of the file. Where it ends in .jsonl (or .jsonl.gz and the like), lines are JSON
            objects with "source" and "target"; else they are a source, a tab and a target.
        text: of the file.

    Raises:
        UserError: a line is no pair.
    """
    is_json = ".jsonl" in name.rpartition("/")[2].lower()
    for number, line in lines_of(text):
        if line.strip():
            yield number, _from_json(name, number, line) if is_json else _split(name, number, line)


def _from_json(name: str, number: int, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
        source, target = value["source"], value["target"]
    except (json.JSONDecodeError, KeyError, TypeError):
        source = target = None
    if not isinstance(source, str) or not isinstance(target, str):
        raise UserError(
            f'{name} line {number} is no {{"source": "...", "target": "..."}}; mend or remove it'
        )
    return source, target


def _split(name: str, number: int, line: str) -> tuple[str, str]:
    sides = line.split("\t")
    if len(sides) != 2:
        raise UserError(
            f"{name} line {number} has {len(sides) - 1} tabs, and a pair has one, between source "
            "and target; mend it, or use a .jsonl file"
        )
    return sides[0], sides[1]


def of_module(text: str) -> Iterator[tuple[str, str]]:
    """Yields (signature, first line of the docstring) of each definition that has both."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the module's own strings
            module = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines = (ast.get_docstring(node) or "").strip().splitlines()
            if lines:
                yield _signature(node), lines[0]


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    return f"def {node.name}({ast.unparse(node.args)})"
