"""Draws the weightings: three small plots of each, on one page.

Left: each place of a row of five against one score, the others held. Middle: how many of 64 places
carry the weight as scores grow. Right: the slope of a weight in its own score.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lm.softmax import WEIGHTINGS

# The scores that are held while the first runs over SWEEP.
HELD = (1.0, 0.5, 0.0, -1.0)
SWEEP = np.linspace(-6.0, 6.0, 241, dtype=np.float32)
SCALES = np.geomspace(0.1, 30.0, 40, dtype=np.float32)
PLACES, ROWS = 64, 64
# Options where the default would show nothing in rows this short.
OPTIONS = {
    "ssmax": {"scale": 1.0},
    "sink": {"sink": 1.0},
    "temperature": {"temperature": 2.0},
    "softcap": {"cap": 2.0},
    "log_length": {"reference_length": 64.0},
    "entmax": {"alpha": 1.25},
    "asentmax": {"beta": 0.5, "gamma": 1.0},
    "top_k": {"k": 2},
}
MOVED, OTHER, SOFTMAX = "#0072B2", "#BBBBBB", "#D55E00"
ACROSS = 2  # weightings beside each other
TITLES = ("weight", "places that carry weight", "slope in its own score")


def draw(path: epath.PathLike) -> None:
    """Draw every weighting as a PNG of 100 dots per inch; few colours keep the file small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure
    from PIL import Image

    down = -(-len(WEIGHTINGS) // ACROSS)
    figure = Figure(figsize=(7.2 * ACROSS, 1.75 * down + 1.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    halves = np.ravel(figure.subfigures(1, ACROSS, wspace=0.03))  # pyright: ignore
    names = list(WEIGHTINGS)
    for column, half in enumerate(halves):
        own = names[column * down : (column + 1) * down]
        grid = half.subplots(down, 3, squeeze=False)
        for name, row in zip(own, grid, strict=False):
            _draw_row(row, name, last=name == own[-1], first=name == own[0])
        for unused in grid[len(own) :].flat:
            unused.set_axis_off()
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(32)
    with epath.Path(path).open("wb") as file:
        picture.save(file, format="png", optimize=True)


def _draw_row(row: np.ndarray, name: str, first: bool, last: bool) -> None:
    weights, slope = _against_one_score(name)
    reference, reference_slope = _against_one_score("softmax")
    left, middle, right = row
    for place in range(1, weights.shape[1]):
        left.plot(SWEEP, weights[:, place], color=OTHER, linewidth=1)
    left.plot(SWEEP, reference[:, 0], color=SOFTMAX, linewidth=1, linestyle="--")
    left.plot(SWEEP, weights[:, 0], color=MOVED, linewidth=1.8)
    left.set_ylabel(_label(name), fontsize=9, fontweight="bold")
    support, effective = _support(name)
    middle.plot(SCALES, _support("softmax")[1], color=SOFTMAX, linewidth=1, linestyle="--")
    middle.plot(SCALES, effective, color=MOVED, linewidth=1.8)
    if WEIGHTINGS[name].sparse:
        middle.plot(SCALES, support, color="black", linewidth=1.2, linestyle=":")
    middle.set_xscale("log")
    middle.set_ylim(0, PLACES + 3)
    middle.set_yticks((0, 32, 64))
    right.plot(SWEEP, reference_slope, color=SOFTMAX, linewidth=1, linestyle="--")
    right.plot(SWEEP, slope, color=MOVED, linewidth=1.8)
    for axes in row:
        axes.tick_params(labelsize=7.5)
        axes.grid(alpha=0.25)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_xticks((-6, -3, 0, 3, 6))
        axes.margins(x=0)
    if first:
        for axes, title in zip(row, TITLES, strict=True):
            axes.set_title(title, fontsize=9.5)
    if last:
        left.set_xlabel("score of the place", fontsize=8.5)
        middle.set_xlabel("standard deviation of the scores", fontsize=8.5)
        right.set_xlabel("score of the place", fontsize=8.5)


def _label(name: str) -> str:
    options = "".join(f"\n{key} {value:g}" for key, value in OPTIONS.get(name, {}).items())
    return name + options + "\nno noise" * WEIGHTINGS[name].random


def _apply(name: str, scores: jax.Array) -> jax.Array:
    """Weights with the gallery's options; random ones without noise."""
    return WEIGHTINGS[name].apply(scores, **OPTIONS.get(name, {}))


def _against_one_score(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights [T, 5] as the first score moves, and the slope [T] of the first weight in it."""

    def weights(score: jax.Array) -> jax.Array:
        return _apply(name, jnp.stack([score, *jnp.asarray(HELD)]))

    moved = jax.vmap(weights)(jnp.asarray(SWEEP))
    slope = jax.vmap(jax.grad(lambda score: weights(score)[0]))(jnp.asarray(SWEEP))
    return np.asarray(moved), np.asarray(slope)


def _support(name: str) -> tuple[np.ndarray, np.ndarray]:
    """For each scale, the mean number of nonzero places, and (sum |w|)^2 / sum w^2."""
    normal = np.random.default_rng(0).normal(size=(ROWS, PLACES)).astype(np.float32)
    weights = np.asarray(_apply(name, jnp.asarray(SCALES[:, None, None] * normal)))
    size = np.abs(weights, dtype=np.float64)
    square = np.sum(size**2, axis=-1)
    effective = np.sum(size, axis=-1) ** 2 / np.where(square == 0, 1.0, square)
    return np.mean(np.sum(weights != 0, axis=-1), axis=-1), np.mean(effective, axis=-1)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=MOVED, linewidth=1.8, label="the place whose score moves; middle: "
               f"effective places of {PLACES}, (sum |w|)² / sum w²"),
        Line2D([], [], color=SOFTMAX, linestyle="--", label="the same of softmax"),
        Line2D([], [], color=OTHER, label="places held at scores 1, 0.5, 0 and -1"),
        Line2D([], [], color="black", linestyle=":", label="middle: places above exactly zero"),
    ]  # fmt: skip
