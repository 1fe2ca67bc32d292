"""Every block of the documentation runs, and every name in it exists."""

import contextlib
import functools
import importlib
import io
import os
import re
import subprocess
import sys

import pytest

import run as program
from configs import default
from lm.attention import ATTENTIONS
from lm.config import declared
from lm.data.objectives import OBJECTIVES
from lm.finetuning import METHODS
from lm.output import OUTPUTS
from lm.softmax import WEIGHTINGS
from lm.tasks import TASKS
from tests.commands import ROOT, run
from tests.documents import (
    PAGES,
    blocks,
    commands,
    commands_of,
    folder_for_commands,
    lines_of,
    run_smaller,
    write_files,
)

DOCS = ROOT / "docs"
FIRST = DOCS / "first_run.md"
LANGUAGES = {"bash", "python", "text", "csv", "yaml", "diff"}
# The pages of docs/add/ are of code that is not there yet: tests/test_additions.py.
OURS = [page for page in PAGES if page.parent.name != "add"]
SLOW = [page for page in OURS if commands(page) and page not in (FIRST, ROOT / "README.md")]
PYTHON = [
    page
    for page in OURS
    if any(block.language == "python" and not block.title for block in blocks(page))
]
SPANS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
GROUPS = {key.rpartition(".")[0] for key in declared()}


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_for_commands(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def trained(folder, corpus_folder, cache):
    """The folder, with the run that pages ask, generate from and start from."""
    if not (folder / "runs" / "clm" / "result.json").exists():
        run_smaller(commands(FIRST)[0], folder, corpus_folder, cache)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert page.read_text().count("```") == 2 * len(blocks(page))
    for block in blocks(page):
        for line in lines_of(block.text) if block.language == "bash" else ():
            assert line.startswith(("python run.py ", "python -m lm.")), line


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_commands_have_flags_and_config_keys_that_exist(page):
    for shown in commands(page):
        name, *flags = shown.arguments
        command = program.COMMANDS[name]
        for flag in flags:
            if command.words and not flag.startswith("-"):
                continue
            assert flag.startswith("--"), flag
            key = flag[2:].partition("=")[0]
            assert command.reads(key.partition(".")[0]), f"{name} {flag}"
            assert not key.startswith("config.") or key[7:] in declared(), flag


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_names_of_files_modules_keys_and_flags_exist(page):
    for span in SPANS.findall(page.read_text()):
        if re.fullmatch(r"(lm|configs|experiments|tests|docs)/[\w/.*-]*(:\w+)?", span):
            assert list(ROOT.glob(span.partition(":")[0])), span
        elif re.fullmatch(r"lm(\.\w+)+", span):
            assert resolve(span), span
        elif found := re.fullmatch(r"(?:--)?config\.(?!json)([a-z][\w.]*\w)(=.*)?", span):
            assert found[1] in declared() or found[1] in GROUPS, span
        elif found := re.fullmatch(r".*\"?(eval/\w+)\"?.*", span):
            assert any(found[1] in text for text in sources()), span
        for flag in re.findall(r"(?:^|\s)--(\w+)(?![\w-])", span):
            known = ("config", "strict", "version", "help")
            readers = [each for each in program.COMMANDS.values() if each.reads(flag)]
            assert readers or flag in known, span


@functools.cache
def sources():
    """The texts of the modules of lm/, in which metrics have their names."""
    return [path.read_text() for path in ROOT.glob("lm/**/*.py")]


def resolve(name):
    """What a dotted name stands for: a module, or a member of one."""
    module, _, rest = name, "", []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for each in rest:
        found = getattr(found, each)
    return True


@pytest.mark.parametrize(
    "page, names",
    {
        "concepts/weightings.md": WEIGHTINGS,
        "concepts/heads.md": OUTPUTS,
        "concepts/mechanisms.md": ATTENTIONS,
        "concepts/objectives.md": OBJECTIVES,
        "howto/finetuning.md": METHODS,
        "howto/labelled_tasks.md": TASKS,
        "howto/regularization.md": default.get_config().regularization,
        "first_run.md": program.COMMANDS,
    }.items(),
)
def test_pages_name_every_entry_of_their_table(page, names):
    assert set(names) <= set(SPANS.findall((DOCS / page).read_text()))


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_blocks_run_and_print_what_they_show(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, shown = {}, blocks(page)
    for block, after in zip(shown, [*shown[1:], None], strict=True):
        if block.language != "python" or block.title:
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.text, name_of(page), "exec"), names)
        if after is not None and after.language == "text" and not after.title:
            assert printed.getvalue() == after.text


def test_every_key_of_the_config_has_a_comment_and_a_line_in_its_page():
    sys.path.insert(0, str(DOCS))
    try:
        import generate_pages
    except ModuleNotFoundError as missing:
        pytest.skip(f"the extra docs is not installed: {missing.name}")
    finally:
        sys.path.remove(str(DOCS))
    page = generate_pages.config_page()
    own = [key for key in declared() if not key.startswith(("encoder_attention", "cross_att"))]
    for key in own:
        assert re.search(rf"^\| `{re.escape(key)}` \|.*\| \S.* \|$", page, re.MULTILINE), key


def test_first_page_shows_commands_that_run(folder, corpus_folder, cache):
    for shown in commands(FIRST):
        run_smaller(shown, folder, corpus_folder, cache)
    table = (folder / "runs" / "output" / "table.md").read_text()
    assert "tied=False" in table and "not separable" in table
    assert len(list(folder.glob("runs/output/*seed1-*"))) == 2
    assert not list(folder.glob("runs/output/*seed2-*"))


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_commands_of_every_page_run(page, trained, corpus_folder, cache):
    write_files(page, trained)
    for shown in commands(page):
        run_smaller(shown, trained, corpus_folder, cache)


@pytest.mark.slow
def test_the_harness_asks_as_its_page_shows(trained, tmp_path):
    pytest.importorskip("lm_eval")
    page = DOCS / "howto" / "prompting.md"
    write_files(page, trained)
    (line,) = re.findall(r"^python (-m lm\..*)$", page.read_text(), re.MULTILINE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [sys.executable, *line.split()]
    finished = subprocess.run(command, cwd=trained, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"python_pairs.*acc", finished.stdout)


def test_the_page_on_launching_shows_what_is_printed_and_written(tmp_path, monkeypatch):
    page = ROOT / "docs" / "howto" / "launch.md"
    folder = folder_for_commands(tmp_path)
    monkeypatch.chdir(folder)
    here = {sys.executable: "/home/me/lab/.venv/bin/python", str(folder): "/home/me/lab"}
    printed = ""
    for block in blocks(page):
        if block.language == "bash":
            (shown,) = commands_of(block.text)
            finished = run(*shown.arguments, cwd=folder)
            assert finished.returncode == 0, finished.stderr
            printed = finished.stdout
        elif block.title != "Dockerfile":
            of_command = block.title in ("printed", "submitted")
            text = printed if of_command else (folder / block.title).read_text()
            for real, other in here.items():
                text = text.replace(real, other)
            assert block.text == text, block.title
