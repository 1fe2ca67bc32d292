"""Simulates tables, to measure what their intervals, verdicts and notes promise.

  python experiments/table_simulation.py [TABLES]    (2,000 by default; 20 minutes on one core)

Each cell draws so many tables of n paired seeds and m rows beside a baseline, and applies the
functions that make real tables. It measures

- coverage: how often the interval of a row holds its true difference (0.95);
- false: tables with any verdict of better or worse where no row differs (at most 0.05);
- found: how often a row whose true difference is the smallest effect that its own table prints is
  found by another table of the same rows (0.80);
- false equivalent: tables with any row called equivalent where the true difference of each is
  exactly the margin, which is the hardest case (at most 0.05);
- unstable: tables that call any row unstable although all noise is normal (at most 0.05);
- moderated: tables in which any moderated p is at most 0.05 where no row differs. It decides no
  verdict, and is above 0.05 where the spreads of rows are unlike in ways that its model has not.

Rows have noise of one standard deviation ("equal"), or of one between 0.2 and 2 each ("unequal").
In "tuned" cells each row is the best of four trials, which differ in their noise and are equally
good, chosen on a seed that is not the table's. "own seeds" chooses those of all rows but the
baseline on the table's own seeds instead, as one must not; its line is not judged.

Ranks: how often the intervals of all k rows of a screen hold their true ranks (at least 0.95).
Documents: how often the interval of a row's own value holds the true one, where seeds, documents
and both together add noise; documents differ in size, with a lognormal's factor of e each way.

It writes experiments/results/table_simulation.md, and fails where a figure is off by more than two
standard errors of the simulation.
"""

import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lm.experiment.ablation.statistics.absolute import two_way_interval
from lm.experiment.ablation.statistics.ranks import rank_rows
from lm.experiment.ablation.statistics.row_tests import compare_rows
from lm.experiment.ablation.statistics.significance import (
    LEVEL,
    equivalence_p,
    holm,
    paired_t_test,
    verdict,
)
from lm.experiment.provenance import commit

RESULTS = pathlib.Path(__file__).parent / "results" / "table_simulation.md"
TRIALS = 4
DECIDED = ("better", "worse")


class Cell(NamedTuple):
    """A kind of table: n seeds, m rows beside the baseline, their spreads, and how they are tuned
    ("", "tuned" or "own seeds").
    """

    n: int
    m: int
    spread: str
    tuning: str = ""


CELLS = [
    *(
        Cell(n, m, spread)
        for n, m in ((3, 25), (5, 31), (10, 6))
        for spread in ("equal", "unequal")
    ),
    Cell(3, 3, "unequal"),
    Cell(5, 31, "unequal", "tuned"),
    Cell(10, 6, "unequal", "tuned"),
    Cell(10, 6, "equal", "own seeds"),
]
DOCUMENTS = [  # seeds, documents, and the noise of each and of both
    (3, 100, 0.01, 0.3, 0.05),
    (5, 20, 0.01, 0.3, 0.05),
    (5, 100, 0.1, 0.3, 0.05),
    (5, 100, 0.03, 0.3, 0.3),
    (10, 100, 0.1, 0.05, 0.3),
]
LIMITS: dict[str, Callable[[float, float], bool]] = {  # of a figure and its standard error
    "coverage": lambda value, error: abs(value - 0.95) <= 0.01 + 2 * error,
    "false": lambda value, error: value <= 0.05 + 2 * error,
    "found": lambda value, error: abs(value - 0.8) <= 0.03 + 2 * error,
    "false equivalent": lambda value, error: value <= 0.05 + 2 * error,
    "unstable": lambda value, error: value <= 0.05 + 2 * error,
    "documents": lambda value, error: abs(value - 0.95) <= 0.02 + 2 * error,
    "ranks": lambda value, error: value >= 0.95 - 2 * error,
}


def spreads(cell: Cell, random: np.random.Generator) -> np.ndarray:
    """Standard deviations of all trials of all rows, the baseline first [m + 1, TRIALS]."""
    shape = (cell.m + 1, TRIALS)
    return np.ones(shape) if cell.spread == "equal" else random.uniform(0.2, 2, size=shape)


def draw(sds: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Values [m + 1, n] of rows without true differences: the seed's, and noise of each row."""
    return 3 * random.normal(size=n) + sds[:, None] * random.normal(size=(len(sds), n))


def choose(cell: Cell, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The noise of the chosen trial of each row [m + 1], and the table's values [m + 1, n]."""
    sds, rows = spreads(cell, random), np.arange(cell.m + 1)
    if cell.tuning == "own seeds":
        trials = sds[..., None] * random.normal(size=(*sds.shape, cell.n))
        best = np.argmin(trials.mean(axis=2), axis=1)
        best[0] = 0
        return sds[rows, best], 3 * random.normal(size=cell.n) + trials[rows, best]
    best = np.zeros(cell.m + 1, int)
    if cell.tuning == "tuned":
        best = np.argmin(sds * random.normal(size=sds.shape), axis=1)  # on a seed of tuning
    return sds[rows, best], draw(sds[rows, best], cell.n, random)


def compare(values: np.ndarray) -> dict:
    """All tests of a table of values [m + 1, n] whose first row is the baseline."""
    rows = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(values)}
    return compare_rows(rows, {row: "0" for row in rows if row != "0"})


def simulate(cell: Cell, tables: int, random: np.random.Generator) -> dict[str, list[float]]:
    """The figures of a cell, a value for each table."""
    found: dict[str, list[float]] = {}

    def add(**figures: float) -> None:
        for name, value in figures.items():
            found.setdefault(name.replace("_", " "), []).append(float(value))

    for _ in range(tables):
        sds, values = choose(cell, random)
        tests = compare(values)
        words = [verdict(each.test, each.p_holm) for each in tests.values()]
        intervals = np.array([each.test.interval for each in tests.values()])
        add(
            coverage=float(np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))),
            false=any(word in DECIDED for word in words),
            moderated=any(each.p_moderated <= LEVEL for each in tests.values()),
            unstable=any(each.far_seeds for each in tests.values()),
            false_equivalent=_false_equivalent(tests, sds),
        )
        row = 1 + int(random.integers(cell.m))
        other = draw(sds, cell.n, random)
        other[row] += random.choice((-1, 1)) * tests[str(row)].smallest_effect
        again = [paired_t_test(dict(enumerate(x)), dict(enumerate(other[0]))) for x in other[1:]]
        adjusted = holm([test.p for test in again])
        add(found=verdict(again[row - 1], adjusted[row - 1]) in DECIDED)
    return found


def _false_equivalent(tests: dict, sds: np.ndarray) -> bool:
    """Whether any row would be called equivalent, were all true differences the margin."""
    margin = 3 * math.sqrt(np.mean(sds**2))
    shifted = []
    for number, each in enumerate(tests.values()):
        sign = 1 if number % 2 else -1
        shifted.append(each.test._replace(difference=each.test.difference + sign * margin))
    return any(p <= LEVEL for p in holm([equivalence_p(test, margin) for test in shifted]))


def simulate_ranks(
    n: int, k: int, gaps: Sequence[float], spread: str, tables: int, random: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Of screens of k rows, n seeds and true means that differ by `gaps` in turn: whether all
    intervals hold the true ranks, of ties all that they share, and the mean width of an interval.
    """
    held, widths = [], []
    means = np.cumsum([gaps[i % len(gaps)] for i in range(k)])
    for _ in range(tables):
        sds = spreads(Cell(n, k - 1, spread), random)[:, 0]
        order = random.permutation(means)
        values = order[:, None] + draw(sds, n, random)
        ranks = rank_rows({str(i): dict(enumerate(row)) for i, row in enumerate(values)})
        low = 1 + (order[None] < order[:, None] - 1e-9).sum(axis=1)
        high = k - (order[None] > order[:, None] + 1e-9).sum(axis=1)
        ends = np.array([(rank.low, rank.high) for rank in ranks.values()])
        held.append(float(np.all((ends[:, 0] <= low) & (ends[:, 1] >= high))))
        widths.append(float(np.mean(ends[:, 1] - ends[:, 0] + 1)))
    return held, widths


def simulate_documents(
    n: int, groups: int, noise: Sequence[float], tables: int, random: np.random.Generator
) -> list[float]:
    """Whether the interval of bits per byte over n seeds and some documents holds the true 2."""
    of_seed, of_document, of_both = noise
    held = []
    for _ in range(tables):
        bits = 2 + of_seed * random.normal(size=(n, 1)) + of_document * random.normal(size=groups)
        sizes = random.lognormal(7, 1, size=groups)
        low, high = two_way_interval(
            sizes * (bits + of_both * random.normal(size=(n, groups))), sizes
        )
        held.append(float(low <= 2 <= high))
    return held


def main(tables: int) -> int:
    """Simulates every cell, prints and writes the figures; 1 where one is off."""
    random, lines, failed = np.random.default_rng(0), [], []

    def cell_of(name: str, values: Sequence[float], judged: bool = True) -> str:
        value, error = float(np.mean(values)), float(np.std(values)) / math.sqrt(len(values))
        off = judged and name in LIMITS and not LIMITS[name](value, error)
        if off:
            failed.append(f"{name} is {value:.3f} ± {error:.3f}")
        return f"{value:.3f}{' (off)' * off}"

    head = f"{tables} simulated tables for each line, at commit {commit()}."

    def show(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        RESULTS.write_text("\n".join([head, "", *lines]) + "\n")

    names = ("coverage", "false", "found", "false equivalent", "unstable", "moderated")
    show("| seeds | rows | spread | trials | " + " | ".join(names) + " |")
    show("| --: | --: | --- | --- |" + " --: |" * len(names))
    for cell in CELLS:
        found = simulate(cell, tables, random)
        cells = [cell_of(name, found[name], cell.tuning != "own seeds") for name in names]
        show(
            f"| {cell.n} | {cell.m} | {cell.spread} | {cell.tuning or 'none'} | "
            f"{' | '.join(cells)} |"
        )
    show("")
    show("| seeds | rows | spread | true means | ranks | mean width |")
    show("| --: | --: | --- | --- | --: | --: |")
    kinds = {"all equal": (0.0,), "in threes": (0.0, 0.0, 4.0), "apart": (2.0,)}
    for spread in ("equal", "unequal"):
        for kind, gaps in kinds.items():
            held, widths = simulate_ranks(3, 12, gaps, spread, tables, random)
            show(
                f"| 3 | 12 | {spread} | {kind} | {cell_of('ranks', held)} | {np.mean(widths):.1f} |"
            )
    show("")
    show("| seeds | documents | noise of seeds | of documents | of both | documents |")
    show("| --: | --: | --: | --: | --: | --: |")
    for n, groups, *noise in DOCUMENTS:
        held = simulate_documents(n, groups, noise, tables, random)
        show(f"| {n} | {groups} | {' | '.join(map(str, noise))} | {cell_of('documents', held)} |")
    print("\n".join(failed) or "all within their limits")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
