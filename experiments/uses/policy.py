"""Draws the reward and the divergence of runs that learn from rewards.

Command  python experiments/uses/policy.py RUN ...   (runs of configs/uses/policy.py)
Writes   experiments/results/uses_policy.png, and uses_policy.json with the commit, the versions and
         the device of every run

A run's name in the figure is its head. The means in the file are over the first and the last tenth
of the steps; those of rewards are with a 95 % interval over steps, each of which has fresh prompts.
"""

import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from lm.training.metric_writer import read_metrics

RESULTS = ROOT / "experiments" / "results"
KEPT = ("commit", "versions", "device", "parameters", "seconds", "config_hash")


def mean(values: np.ndarray) -> dict[str, float]:
    """The mean, and half of its 95 % interval."""
    error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": round(float(values.mean()), 4), "half_interval": round(float(error), 4)}


def measured(folder: pathlib.Path) -> tuple[str, np.ndarray, dict[str, Any]]:
    """The head of a run, its steps with rewards and divergences [n, 3], and what is recorded."""
    records = read_metrics(epath.Path(folder) / "metrics.jsonl")
    lines = [(r["step"], r["train/reward"], r["train/kl"]) for r in records if "train/kl" in r]
    curve, tenth = np.array(lines), max(len(lines) // 10, 2)
    config = json.loads((folder / "config.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    recorded = {name: result[name] for name in KEPT if name in result}
    recorded |= {f"first_{name}": mean(curve[:tenth, i]) for i, name in ((1, "reward"), (2, "kl"))}
    recorded |= {f"last_{name}": mean(curve[-tenth:, i]) for i, name in ((1, "reward"), (2, "kl"))}
    return config["output"]["head"], curve, recorded | {"policy": config["policy"]}


def main(folders: list[str]) -> None:
    """Writes the figure and the file."""
    runs = [measured(pathlib.Path(folder)) for folder in folders]
    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for head, curve, _ in runs:
        left.plot(curve[:, 0], curve[:, 1], label=head)
        right.plot(curve[:, 0], curve[:, 2], label=head)
    left.set(xlabel="step", ylabel="lines that are statements of Python", ylim=(0, 1))
    right.set(xlabel="step", ylabel="nats from the start, per continuation")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "uses_policy.png")
    found = {head: recorded for head, _, recorded in runs}
    (RESULTS / "uses_policy.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
