"""How much of each task was forgotten? Numbers and a table of a matrix R [runs, T], where R_ij is
a metric on task j after run i of a chain.
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from lm.experiment.primary_metric import Headline


def forgotten(matrix: np.ndarray, lower: bool = False) -> np.ndarray:
    """max_{i<T} R_ij - R_Tj of every task j but the last, [T - 1]; above 0 is worse than it was.

    Of T runs, R [T, T] (Chaudhry et al. 2018, 1801.10112). With `lower`, less of the metric is
    better, and signs turn round.
    """
    gains = -matrix if lower else matrix
    return (gains[:-1].max(axis=0) - gains[-1])[:-1]


def measures(matrix: np.ndarray, lower: bool = False) -> dict[str, float]:
    """What tables compare, of R [T, T]; of all tasks at once, R [1, T], the mean alone.

    Returns:
      "eval/forgetting", the mean of `forgotten`, and "eval/backward_transfer",
      mean_{j<T} R_Tj - R_jj (Lopez-Paz and Ranzato 2017, 1706.08840); above 0, later tasks have
      helped. With `lower`, its sign turns round.
    """
    if len(matrix) == 1:
        return {}
    moved = (matrix[-1] - np.diag(matrix))[:-1]
    return {
        "eval/forgetting": float(forgotten(matrix, lower).mean()),
        "eval/backward_transfer": float(-moved.mean() if lower else moved.mean()),
    }


def to_markdown(matrix: np.ndarray, sources: Sequence[str], judged: Headline) -> str:
    """R as a table, a row for each run and a column for each task, with what was forgotten."""
    files = [PurePath(source.partition(":")[2]).name for source in sources]
    names = [f"{place} {file}" for place, file in enumerate(files, start=1)]
    order = "lower" if judged.lower else "higher"
    notes = [f"Held-out {judged.unit} on every task after each run; {order} is better."]
    notes += [f"Mean over tasks after the last: {matrix[-1].mean():.4f}."]
    rows = [("all at once", *_cells(matrix[0], ".4f"))]
    if len(matrix) > 1:
        rows = [(name, *_cells(row, ".4f")) for name, row in zip(names, matrix, strict=True)]
        rows += [("forgotten", *_cells(forgotten(matrix, judged.lower), "+.4f"), "")]
        found = measures(matrix, judged.lower)
        notes += [
            f"Forgetting, the best before the last run less what it left: "
            f"{found['eval/forgetting']:+.4f} (mean over all tasks but the last).",
            f"Backward transfer, what was left better than when it was learned: "
            f"{found['eval/backward_transfer']:+.4f}.",
        ]
    table = [("after", *names), ("---", *("--:" for _ in names)), *rows]
    lines = ["| " + " | ".join(row) + " |\n" for row in table]
    return "".join([*lines, "\n", *(f"- {note}\n" for note in notes)])


def _cells(values: np.ndarray, form: str) -> list[str]:
    return [f"{value:{form}}" for value in values]
