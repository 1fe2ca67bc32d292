"""Hook of MkDocs: the reference pages of config keys, commands and modules, made from the code."""

import pathlib
import subprocess
import sys

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_files(files, config):
    """Adds the generated pages to the site."""
    sys.path.insert(0, str(ROOT))  # MkDocs takes back what a hook adds when it is loaded
    pages = {"config": config_page(), "commands": commands_page(), "root": modules_page("")}
    for package in sorted(path.parent.name for path in (ROOT / "lm").glob("*/__init__.py")):
        pages[package] = modules_page(package)
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    results = ROOT / "experiments" / "results"
    for figure in (results / "gallery.png", *sorted(results.glob("uses_*.png"))):
        files.append(File.generated(config, f"images/{figure.name}", abs_src_path=str(figure)))
    return files


def config_page() -> str:
    """Every config key, with its type, default and comment, group by group."""
    from configs import default
    from lm.config import declared, flatten
    from lm.experiment.config_help import key_comments

    types, comments = declared(), key_comments()
    groups: dict[str, list[str]] = {}
    for key, value in flatten(default.get_config().to_dict()).items():
        group = key.rpartition(".")[0]
        if group in ("encoder_attention", "cross_attention"):
            continue
        kind = types[key].kind.__name__ + (" or None" if types[key].optional else "")
        meaning = comments.get(key, "").replace("|", r"\|")
        groups.setdefault(group, []).append(f"| `{key}` | {kind} | `{value!r}` | {meaning} |")
    lines = [
        "# Config keys",
        "",
        "Made from the comments of `configs/default.py`, `configs/tasks.py` and "
        "`configs/regularization.py`. Set a key on the command line as `--config.KEY=VALUE`. "
        "`config.encoder_attention` and `config.cross_attention` have the keys of "
        "`config.attention`, all None: they follow it until they are set.",
    ]
    for group, rows in sorted(groups.items()):
        lines += ["", f"## {group or 'Top level'}", "", "| Key | Type | Default | Meaning |"]
        lines += ["| --- | --- | --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """What `run.py -h` prints."""
    command = [sys.executable, "run.py", "-h"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return (
        "# Commands and flags\n\n`softmax-lab` is the same program as `python run.py`. "
        "`python run.py COMMAND -h` prints the flags that one command reads.\n\n"
        f"```text\n{printed.rstrip()}\n```\n"
    )


def modules_page(package: str) -> str:
    """The docstrings of a package's modules; of the root's own modules where `package` is ""."""
    folder = ROOT / "lm" / package
    paths = folder.rglob("*.py") if package else folder.glob("*.py")
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    names = [name.removesuffix(".__init__") for name in names]
    title = f"lm.{package}" if package else "lm.config and lm.errors"
    return f"# {title}\n\n" + "\n".join(f"::: {name}\n" for name in names)
