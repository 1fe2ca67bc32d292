"""What `run.py reproduce` does: lists published results, measures them again, writes reports."""

import sys
from collections.abc import Sequence

from etils import epath

from lm.data.files import parse_json, write_json, write_text
from lm.errors import UserError, counted
from lm.experiment.reproduce.deviation import AGREE, aligned, compare, to_json, to_markdown
from lm.experiment.reproduce.expected import NETWORK, Expected, all_expected, find_expected
from lm.experiment.reproduce.measure import load_recipe, measure_seeds
from lm.experiment.run_dir import held


def list_expected(workdir: epath.Path) -> list[str]:
    """A line for each published result: its source, about how long it takes on one core, and how
    far it is in the workdir.
    """
    known = all_expected().values()
    columns = {
        "name": [each.name for each in known],
        "source": [each.source for each in known],
        "minutes": [f"{each.minutes:g}" for each in known],
        "state": [_state(each, workdir / each.name) for each in known],
    }
    return aligned(columns)


def _state(expected: Expected, folder: epath.Path) -> str:
    report = folder / "report.json"
    if not report.exists():
        return f"not run: needs {expected.needs}" if expected.needs == NETWORK else "not run"
    try:
        content = parse_json(report.read_bytes(), report)
        results = [each["result"] for each in content["quantities"].values()]
        seeds = counted(len(content["seeds"]), "seed")
    except (UserError, KeyError):
        return "damaged report: run it again"
    if results[0].startswith("in progress"):
        return results[0]
    agreeing = sum(result in AGREE for result in results)
    return f"{agreeing} of {len(results)} as published, {seeds}"


def reproduce_named(names: Sequence[str], workdir: epath.Path, seeds: int | None = None) -> int:
    """Measures published results again, and prints and writes their deviation reports.

    WORKDIR/NAME has a file for each finished seed, which the next call reads instead of measuring
    it, report.md and report.json.

    Args:
      names: which; "all" stands for all that need no network.
      seeds: the first so many of each recipe's, at most all; None: all.

    Returns:
      0; 1 where one of all could not be measured.

    Raises:
      UserError: for an unknown name, and where one that was named cannot be measured.
    """
    failed = 0
    chosen = [find_expected(name) for name in names if name != "all"]
    if "all" in names:
        for each in all_expected().values():
            if each.needs == NETWORK:
                print(f"{each.name} is not run: it needs a network; name it to run it\n")
                continue
            try:
                print(_reproduce(each, workdir / each.name, seeds), flush=True)
            except UserError as error:
                failed = 1
                print(f"run.py: {error}", file=sys.stderr, flush=True)
    for each in chosen:
        print(_reproduce(each, workdir / each.name, seeds), flush=True)
    return failed


def _reproduce(expected: Expected, folder: epath.Path, first: int | None) -> str:
    """The report of a published result, which is written anew after every seed."""
    recipe = load_recipe(expected)
    seeds, results, report = recipe.seeds[:first], [], ""
    with held(folder):
        for result in measure_seeds(expected, recipe, seeds, folder):
            results.append(result)
            found = compare(expected, results, len(seeds), len(recipe.seeds))
            report = to_markdown(expected, found, results)
            write_text(folder / "report.md", report)
            write_json(folder / "report.json", to_json(expected, found, results))
    return report
