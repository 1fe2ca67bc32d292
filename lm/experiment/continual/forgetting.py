"""Forgetting and backward transfer, from a matrix R [runs, T] of a metric on task j after run i."""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from lm.experiment.primary_metric import PrimaryMetric


def forgetting(matrix: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """max_{i<T} R_ij - R_Tj of every task j but the last, [T - 1]; above 0, the task became worse.

    R is [T, T] (Chaudhry et al. 2018, 1801.10112). With `lower_is_better` the signs change.
    """
    gains = -matrix if lower_is_better else matrix
    return (gains[:-1].max(axis=0) - gains[-1])[:-1]


def forgetting_metrics(matrix: np.ndarray, lower_is_better: bool = False) -> dict[str, float]:
    """Metrics of R [T, T]; none of joint training, R [1, T].

    Returns:
      "eval/forgetting", the mean of `forgetting`, and "eval/backward_transfer",
      mean_{j<T} R_Tj - R_jj (Lopez-Paz and Ranzato 2017, 1706.08840), above 0 where later tasks
      helped. With `lower_is_better` its sign changes.
    """
    if len(matrix) == 1:
        return {}
    moved = (matrix[-1] - np.diag(matrix))[:-1]
    return {
        "eval/forgetting": float(forgetting(matrix, lower_is_better).mean()),
        "eval/backward_transfer": float(-moved.mean() if lower_is_better else moved.mean()),
    }


def to_markdown(matrix: np.ndarray, sources: Sequence[str], metric: PrimaryMetric) -> str:
    """R as a table with a row for each run, a column for each task, and the forgetting."""
    files = [PurePath(source.partition(":")[2]).name for source in sources]
    names = [f"{stage} {file}" for stage, file in enumerate(files, start=1)]
    order = "lower" if metric.lower_is_better else "higher"
    notes = [f"Held-out {metric.unit} on every task after each run; {order} is better."]
    notes += [f"Mean over tasks after the last: {matrix[-1].mean():.4f}."]
    rows = [("joint", *_cells(matrix[0], ".4f"))]
    if len(matrix) > 1:
        rows = [(name, *_cells(row, ".4f")) for name, row in zip(names, matrix, strict=True)]
        rows += [("forgetting", *_cells(forgetting(matrix, metric.lower_is_better), "+.4f"), "")]
        found = forgetting_metrics(matrix, metric.lower_is_better)
        notes += [
            f"Forgetting, the best value before the last run minus the final one: "
            f"{found['eval/forgetting']:+.4f} (mean over all tasks but the last).",
            f"Backward transfer, the final value minus the one right after training on the task: "
            f"{found['eval/backward_transfer']:+.4f}.",
        ]
    table = [("after", *names), ("---", *("--:" for _ in names)), *rows]
    lines = ["| " + " | ".join(row) + " |\n" for row in table]
    return "".join([*lines, "\n", *(f"- {note}\n" for note in notes)])


def _cells(values: np.ndarray, form: str) -> list[str]:
    return [f"{value:{form}}" for value in values]
