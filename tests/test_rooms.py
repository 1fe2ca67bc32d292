"""The rooms of lm/: their order, how imports run between them, and how many a file needs."""

import ast
import functools
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# A file imports from its own room and from rooms on lines above; of one line, none from the other.
ROOMS = (
    ("devices",),
    ("softmax",),
    ("attention", "output"),
    ("model",),
    ("data",),
    ("finetuning",),
    ("tasks",),
    ("training",),
    ("checkpoints",),
    ("generation",),
    ("evaluation",),
    ("serving",),
    ("experiment",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MOST_IMPORTS = 15


def name(path: pathlib.Path) -> str:
    """The module of a file: "lm.data.cache", and "lm.data" for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name(path): path
    for path in sorted([*ROOT.glob("lm/**/*.py"), *ROOT.glob("configs/**/*.py"), ROOT / "run.py"])
}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports: at its top, in functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; write lm.{node.module}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {n if n in FILES else node.module for n in names}
    return frozenset(
        n for n in found if n.split(".")[0] in ("lm", "configs", "run") and n != module
    )


def room(module: str) -> str:
    """The room of a module of lm; "" for the root, run.py and the configs."""
    parts = module.split(".")
    return parts[1] if parts[0] == "lm" and len(parts) > 1 and parts[1] in LEVEL else ""


def package(module: str) -> str:
    """The folder of a module, as a package."""
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def test_the_root_of_lm_holds_three_files():
    assert {path.name for path in ROOT.glob("lm/*.py")} == {"__init__.py", "config.py", "errors.py"}
    assert {path.parent.name for path in ROOT.glob("lm/*/__init__.py")} == set(LEVEL)


def test_imports_between_rooms_point_up_the_list():
    pairs = {(room(module), room(other)) for module in FILES for other in imports(module)}
    upward = {(a, b) for a, b in pairs if a and b and a != b and LEVEL[b] >= LEVEL[a]}
    assert not upward


def test_the_root_imports_no_room():
    for module in ("lm", "lm.config", "lm.errors"):
        assert not {other for other in imports(module) if room(other)}


def test_lm_imports_no_command():
    assert not {module for module in FILES if "run" in imports(module)}


def test_no_package_imports_one_that_imports_it_back():
    """A folder within a package is a part of it; so is what it imports from there."""
    edges = {(package(module), package(other)) for module in FILES for other in imports(module)}
    circles = {(a, b) for a, b in edges if a < b and (b, a) in edges and not b.startswith(f"{a}.")}
    assert not circles


def test_no_circle_of_files_exists():
    graphlib.TopologicalSorter({module: imports(module) for module in FILES}).prepare()


def test_no_file_imports_more_than_fifteen_of_ours():
    assert not {m for m in FILES if len(imports(m)) > MOST_IMPORTS}


def test_what_is_chosen_by_device_follows_the_mesh():
    """A program can be compiled for devices that this process does not have."""
    assert not {m for m, path in FILES.items() if "default_backend" in path.read_text()}


def test_few_annotations_are_any():
    lines = [line for path in ROOT.glob("lm/**/*.py") for line in path.read_text().splitlines()]
    assert sum(": Any" in line for line in lines) < 120


def test_no_file_of_code_has_more_than_350_lines():
    code = {m: path for m, path in FILES.items() if not m.startswith("configs.")}
    assert not {m for m, path in code.items() if len(path.read_text().splitlines()) > 350}
