"""Runs a recipe for each of its seeds, and keeps what it measured in a file for each seed."""

import hashlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from lm.data.files import parse_json, write_json
from lm.errors import UserError
from lm.experiment.provenance import commit, versions
from lm.experiment.reproduce.expected import Expected


class Recipe(NamedTuple):
    """A recipe's seeds, and its function of a seed and a folder for what it trains, which gives the
    quantities by name.
    """

    seeds: Sequence[int]
    measure: Callable[[int, epath.Path], Mapping[str, float]]


class SeedResult(NamedTuple):
    """What a recipe measured with a seed; the processor seconds, commit and versions of that."""

    seed: int
    values: Mapping[str, float]
    seconds: float
    commit: str | None
    versions: Mapping[str, str]


def load_recipe(expected: Expected) -> Recipe:
    """The recipe of a published result.

    Raises:
      UserError: where a package that it needs is not installed.
    """
    spec: Any = importlib.util.spec_from_file_location(f"recipe_{expected.name}", expected.recipe)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{expected.name} needs {error.name}, which is not installed: "
            'pip install -e ".[finetune]"'
        ) from None
    return Recipe(module.SEEDS, module.measure)


def measure_seeds(
    expected: Expected, recipe: Recipe, seeds: Sequence[int], folder: epath.Path
) -> Iterator[SeedResult]:
    """The results of seeds, one after the other: those that are in the folder already, of the
    recipe as it is now, are read.
    """
    for seed in seeds:
        found = read_seed(expected, seed, folder)
        if found is None:
            start = time.process_time()
            values = {
                name: float(value)
                for name, value in recipe.measure(seed, folder / f"seed-{seed}").items()
            }
            if values.keys() != expected.quantities.keys():
                raise ValueError(f"{expected.recipe} measures {sorted(values)}")
            seconds = time.process_time() - start
            found = SeedResult(seed, values, seconds, commit(), versions())
            folder.mkdir(parents=True, exist_ok=True)
            content = {**found._asdict(), "recipe": _hash(expected)}
            write_json(folder / f"seed-{seed}.json", content)
            print(f"{expected.name} seed {seed}: {seconds:.0f} s of processor time", flush=True)
        yield found


def read_seed(expected: Expected, seed: int, folder: epath.Path) -> SeedResult | None:
    """What the recipe as it is now has measured with a seed; None where it has not, or where the
    file is damaged.
    """
    path = folder / f"seed-{seed}.json"
    if not path.exists():
        return None
    try:
        content = parse_json(path.read_bytes(), path)
        if content.pop("recipe", None) != _hash(expected):
            return None
        found = SeedResult(**content)
    except (UserError, TypeError):  # no JSON, or other keys
        return None
    values = {k: math.nan if v is None else v for k, v in found.values.items()}  # null is NaN
    return found._replace(values=values)


def _hash(expected: Expected) -> str:
    """Names the recipe's source."""
    return hashlib.sha256(expected.recipe.read_bytes()).hexdigest()[:12]
