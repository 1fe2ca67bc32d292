"""Draws docs/images/weights.png: one row of scores, and the weights that six weightings make of it.

Command   python docs/draw_weights.py docs/images/weights.png
"""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lm.softmax import WEIGHTINGS

SCORES = np.array([0.3, -1.2, 1.1, 2.0, -0.4, 0.9, 2.6, -2.0, 0.1, 1.5, -0.8, 0.6], np.float32)
# Name, options, and the title of the panel.
PANELS = (
    ("softmax", {}, "softmax: no zeros"),
    ("temperature", {"temperature": 2.0}, "temperature 2: flatter"),
    ("off_by_one", {}, "off_by_one: sum below 1"),
    ("entmax15", {}, "entmax15: exact zeros (x)"),
    ("sparsemax", {}, "sparsemax: more zeros"),
    ("sigmoid", {}, "sigmoid: each score by itself"),
)
DARK, LIGHT, ZERO = "#2f4b7c", "#8a94a6", "#d45087"


def draw(path: str) -> None:
    """Writes the picture."""
    plt.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans"})
    figure = plt.figure(figsize=(10, 3.6), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(1.25, 1, 1, 1))
    places = np.arange(len(SCORES))
    axes = figure.add_subplot(grid[:, 0])
    axes.bar(places, SCORES, color=LIGHT, width=0.75)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_title("scores of one query\nagainst twelve keys", fontsize=9)
    _plain(axes)
    for number, (name, options, title) in enumerate(PANELS):
        weights = np.asarray(WEIGHTINGS[name].apply(SCORES, **options))
        axes = figure.add_subplot(grid[number // 3, 1 + number % 3])
        axes.bar(places, weights, color=DARK, width=0.75)
        zeros = places[weights == 0.0]
        axes.plot(zeros, np.full(len(zeros), 0.02), "x", color=ZERO, markersize=4)
        axes.set_ylim(0, 0.9)
        axes.set_title(title, fontsize=9)
        axes.text(0.02, 0.86, f"sum {weights.sum():.2f}", transform=axes.transAxes, color=DARK)
        _plain(axes)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plain(axes) -> None:
    """Takes away what a small picture does not need."""
    axes.set_xticks([])
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(sys.argv[1])
