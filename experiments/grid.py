"""Picks the best point of a grid, and evaluates it on examples that did not choose it.

Command  python experiments/grid.py WORKDIR    (of a sweep over a task, such as runs/grid)

The held-out examples are split in two by a hash of their texts. Every point is scored by the task's
metric on the first half, a row by its mean over seeds; the best row is then scored on the second.
Its score on the first half is too good: the more rows, the luckier the best of them.
"""

import collections
import hashlib
import json
import pathlib
import statistics
import sys

from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lm.data.deduplicate import split_position
from lm.tasks import build_task


def halves(predictions: list[dict]) -> tuple[list[dict], list[dict]]:
    """Predictions whose texts choose, and those that tell."""
    found: tuple[list[dict], list[dict]] = ([], [])
    for each in predictions:
        key = hashlib.sha256(each["text"].encode()).digest()
        found[split_position(key) >= 0.5].append(each)
    return found


def scores(run: pathlib.Path) -> tuple[float, float, bool]:
    """The task's metric on both halves, and whether less of it is better."""
    task = build_task(ConfigDict(json.loads((run / "config.json").read_text())))
    labels = json.loads((run / "data.json").read_text())["labels"]
    lines = (run / "predictions.jsonl").read_text().split("\n")
    parts = halves([json.loads(line) for line in lines if line])
    first, second = (task.score(part, labels)[task.main_metric] for part in parts)
    return first, second, task.main_metric in task.lower_is_better


def main(workdir: str) -> None:
    """Prints every row's score on the first half, and the best row's on the second."""
    rows, lower = collections.defaultdict(list), False
    for result in sorted(pathlib.Path(workdir).glob("*/result.json")):
        first, second, lower = scores(result.parent)
        rows[result.parent.name.rpartition("-seed")[0]].append((first, second))
    if not rows:
        raise SystemExit(f"{workdir} holds no finished point of a sweep")
    means = {
        row: [statistics.mean(each) for each in zip(*found, strict=True)]
        for row, found in rows.items()
    }
    order = sorted(means, key=lambda row: means[row][0], reverse=not lower)
    for row in order:
        print(f"{means[row][0]:.4f}  {row} ({len(rows[row])} seeds)")
    print(f"best: {order[0]}, {means[order[0]][1]:.4f} on the examples that did not choose it")


if __name__ == "__main__":
    main(sys.argv[1])
