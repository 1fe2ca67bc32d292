"""Plots a diagnosis: a panel each for spectrum, surviving gradient, argmax and reliability."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from lm.evaluation.diagnostics.spectrum import NOISE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, OTHER, TRUTH, NEVER = "#0072B2", "#88CCEE", "#117733", "#D55E00"


def draw(found: Mapping[str, Any], title: str, path: epath.PathLike) -> None:
    """Plots the result of `diagnose` as a PNG of 150 dots per inch."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(11, 8.2), dpi=150, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))
    panels = {"spectrum": _draw_spectrum, "gradient": _draw_gradient}
    panels |= {"argmax": _draw_argmax, "calibration": _draw_reliability}
    for axes, name in zip(np.ravel(figure.subplots(2, 2)), panels, strict=True):
        if "unavailable" in found[name]:
            axes.text(0.5, 0.5, found[name]["unavailable"], ha="center", va="center", wrap=True)
            axes.set_axis_off()
        else:
            panels[name](axes, found)
            axes.grid(alpha=0.25)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png")


def _draw_spectrum(axes: "Axes", found: Mapping[str, Any]) -> None:
    curves = {
        "spectrum_truth": (TRUTH, "--", "true log-probabilities"),
        "spectrum": (OWN, "-", "log-probabilities"),
        "spectrum_centred": (OTHER, "-", "minus each context's mean"),
    }
    for key, (colour, style, label) in curves.items():
        if key not in found:
            continue
        values = np.array(found[key]["singular_values"])
        ranks = f"rank {found[key]['rank']}, entropy rank {found[key]['entropy_rank']:.1f}"
        indices = np.arange(1, len(values) + 1)
        axes.plot(indices, values / values[0], style, color=colour, label=f"{label}: {ranks}")
    axes.axvline(found["d_model"] + 1, color="black", linewidth=0.8, linestyle=":")
    at = found["d_model"] + 1, 1.0
    axes.annotate(" D + 1", at, xycoords=("data", "axes fraction"), va="top")
    axes.axhline(NOISE, color="black", linewidth=0.8, linestyle=":", label="rounding in float32")
    axes.set(xscale="log", xlabel="index", yscale="log", ylabel="singular value over the largest")
    axes.set_ylim(NOISE / 3000, 2)  # the legend stands below the rounding
    axes.set_title(f"{found['contexts']} contexts x {found['vocab_size']} tokens", fontsize=10)
    axes.legend(loc="lower left", fontsize=8)


def _draw_gradient(axes: "Axes", found: Mapping[str, Any]) -> None:
    gradient = found["gradient"]
    axes.hist(gradient["shares"], bins=np.linspace(0, 1, 41).tolist(), color=OWN)
    mean, random = gradient["share"], gradient["random_share"]
    axes.axvline(mean, color="black", linestyle="--", label=f"mean: {mean:.3f}")
    label = f"random gradient, sqrt(D / V): {random:.3f}"
    axes.axvline(random, color=NEVER, linestyle="--", label=label)
    axes.set(xlim=(0, 1), xlabel="share of the gradient's norm that passes the head")
    axes.set_ylabel("contexts")
    axes.set_title(f"{gradient['contexts']} contexts", fontsize=10)
    axes.legend(fontsize=8)


def _draw_argmax(axes: "Axes", found: Mapping[str, Any]) -> None:
    groups = found["argmax"]["by_frequency"]
    tokens = np.array([group["tokens"] for group in groups])
    own = np.array([group["by_own_embedding"] for group in groups])
    never = np.array([len(group["never"]) for group in groups])
    parts = {"its own vector": (own, OWN), "another": (tokens - own - never, OTHER)}
    parts["none"] = (never, NEVER)
    base = np.zeros(len(groups))
    for label, (counts, colour) in parts.items():
        axes.bar(range(len(groups)), counts / tokens, bottom=base, color=colour, label=label)
        base = base + counts / tokens
    names = ["most frequent", *[""] * (len(groups) - 2), "rarest"]
    axes.set_xticks(range(len(groups)), names)
    axes.set(ylim=(0, 1), xlabel="fifths of the vocabulary, by frequency")
    axes.set_ylabel("share of tokens")
    counts = "{never} of {tokens} tokens".format(**found["argmax"])
    axes.set_title(f"{counts} can never be the argmax", fontsize=10)
    look = {"ncols": 3, "fontsize": 8, "title_fontsize": 8, "frameon": False}
    look |= {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    axes.legend(title="hidden state with a token as argmax", **look)


def _draw_reliability(axes: "Axes", found: Mapping[str, Any]) -> None:
    calibration = found["calibration"]
    bins = [each for each in calibration["bins"] if each["count"]]
    width = 1 / len(calibration["bins"])
    centres = [each["lower_edge"] + width / 2 for each in bins]
    axes.bar(centres, [each["accuracy"] for each in bins], width=0.94 * width, color=OWN)
    axes.plot([each["confidence"] for each in bins], [each["accuracy"] for each in bins], "k.")
    axes.plot((0, 1), (0, 1), color="black", linewidth=0.8, linestyle="--")
    for centre, each in zip(centres, bins, strict=True):
        height = max(each["accuracy"], each["confidence"]) + 0.02
        axes.text(centre, height, f"{each['count']:,}", fontsize=7, rotation=90, ha="center")
    axes.set(xlim=(0, 1), xlabel="confidence (dots: means of the bins)")
    axes.set(ylim=(0, 1.15), ylabel="accuracy")
    error, chance = calibration["expected_calibration_error"], calibration["expected_by_chance"]
    title = f"expected calibration error {error:.4f} ({chance:.4f} by chance), counts above"
    axes.set_title(title, fontsize=10)
