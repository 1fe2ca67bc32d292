"""Reads what is expected of a recipe from experiments/expected/NAME.json: published values with
their source, the published setup, and what the recipe changes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import lm
from lm.errors import UserError, nearest

EXPERIMENTS = pathlib.Path(lm.__file__).parents[1] / "experiments"
BOUNDS = {"at_most": "at most", "at_least": "at least", "above": "above", "below": "below"}
# What a recipe may need beyond the packages of requirements.txt.
NETWORK = "network"
_NEEDS = ("", NETWORK, "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that a recipe measures, and what was published of it.

    Attributes:
      what: it is, in a few words.
      published: the published value, or what was said of it where no value is comparable.
      tolerance: ours is to be within this of `published`, a number; None: a bound is given.
      bound: "at_most", "at_least", "above" or "below"; "" with a tolerance.
      limit: the bound's number; with a tolerance, that of `published`.
    """

    what: str
    published: float | str
    tolerance: float | None
    bound: str
    limit: float


@dataclasses.dataclass(frozen=True)
class Expected:
    """A published result that a recipe measures again.

    Attributes:
      name: of the JSON file and of the recipe, experiments/recipes/NAME.py.
      title: what was claimed, in one sentence.
      source: the paper, and where in it.
      minutes: about how long all seeds take on one CPU core.
      needs: "network", "scikit-learn", or "".
      published_setup: how the published values were measured.
      differs: in what the recipe differs from it.
      quantities: by the name under which the recipe gives them.
    """

    name: str
    title: str
    source: str
    minutes: float
    needs: str
    published_setup: str
    differs: tuple[str, ...]
    quantities: Mapping[str, Quantity]

    @property
    def recipe(self) -> pathlib.Path:
        """The Python file with SEEDS and measure(seed, folder)."""
        return EXPERIMENTS / "recipes" / f"{self.name}.py"


def read_expected(path: pathlib.Path) -> Expected:
    """What a JSON file says.

    Raises:
      ValueError: where a key is missing or unknown, or a quantity has not exactly one of a
        tolerance and a bound.
    """
    content = json.loads(path.read_text())
    fields = {field.name for field in dataclasses.fields(Expected)} - {"name"}
    if content.keys() != fields:
        raise ValueError(f"{path.name} has keys {sorted(content)} instead of {sorted(fields)}")
    if content["needs"] not in _NEEDS:
        raise ValueError(f"{path.name} needs {content['needs']!r}, which is not one of {_NEEDS}")
    source = content["source"]
    arxiv = f" (arXiv {source['arxiv']})" if source.get("arxiv") else ""
    content["source"] = f"{source['paper']}{arxiv}, {source['place']}"
    content["differs"] = tuple(content["differs"])
    content["quantities"] = {
        name: _quantity(f"{path.name}: {name}", each)
        for name, each in content["quantities"].items()
    }
    return Expected(path.stem, **content)


def _quantity(where: str, content: Mapping[str, Any]) -> Quantity:
    kinds = ("tolerance", *BOUNDS)
    given = [key for key in kinds if key in content]
    if len(given) != 1 or content.keys() != {"what", "published", *given}:
        raise ValueError(
            f"{where} needs what, published and one of {', '.join(kinds)}, not {sorted(content)}"
        )
    kind, number = given[0], content[given[0]]
    what, published = content["what"], content["published"]
    if kind != "tolerance":
        return Quantity(what, published, None, kind, float(number))
    if isinstance(published, str):
        raise ValueError(f"{where} has a tolerance, but published = {published!r} is no number")
    return Quantity(what, published, float(number), "", float(published))


def all_expected() -> dict[str, Expected]:
    """All by name, those that are ready to run first, the shortest first.

    Raises:
      UserError: outside of a checkout of the project.
    """
    paths = sorted((EXPERIMENTS / "expected").glob("*.json"))
    if not paths:
        raise UserError(
            f"reproduce needs a checkout of the project: there is no {EXPERIMENTS / 'expected'}"
        )
    found = sorted(
        map(read_expected, paths), key=lambda each: (each.needs == NETWORK, each.minutes)
    )
    return {each.name: each for each in found}


def find_expected(name: str) -> Expected:
    """The one of this name; raises UserError, with the nearest name, where there is none."""
    known = all_expected()
    if name not in known:
        raise UserError(
            f"{name} is no published result that can be reproduced; use all, "
            f"{', '.join(known)}{nearest(name, known)}"
        )
    return known[name]
