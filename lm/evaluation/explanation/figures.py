"""Plots an explanation: attention maps, heads, attributions of words, and the logit lens."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOR, AGAINST = "#0072B2", "#D55E00"
MOST_WORDS = 40  # in a figure
_MOST_PLACES = 24  # tokens of the lens in a figure, the last of the text

Explanation = Mapping[str, Any]


def draw_figures(found: Explanation, folder: epath.Path) -> list[str]:
    """Writes the figures of an explanation as PNGs of 150 dots per inch; their names."""
    drawn: dict[str, Callable[[], Figure]] = {
        "words.png": lambda: _draw_words(found),
        "lens.png": lambda: _draw_lens(found),
    }
    kinds = {} if "unavailable" in found["attention"] else found["attention"]
    for kind, attention in kinds.items():
        name = kind.replace(" ", "_")
        drawn[f"{name}.png"] = lambda kind=kind, own=attention: _draw_maps(own, kind)
        drawn[f"{name}_heads.png"] = lambda kind=kind, own=attention: _draw_heads(own, kind)
    for name, draw in drawn.items():
        with (folder / name).open("wb") as file:
            draw().savefig(file, format="png")
    return list(drawn)


def _figure(width: float, height: float, title: str) -> "Figure":
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.suptitle(_literal(title), fontsize=11)
    return figure


def shown(text: str) -> str:
    """A piece of text whose white space can be seen."""
    return text.replace("\n", "\u21b5").replace("\t", "\u21e5").strip(" ") or "\u2423"


def _literal(text: str) -> str:
    """A text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _draw_words(found: Explanation) -> "Figure":
    """Two panels of bars, a word each."""
    words = found["words"][-MOST_WORDS:]
    names = [_literal(shown(word["text"])) for word in words]
    figure = _figure(9, 1.6 + 0.24 * max(len(words), 3), f"why {found['target']['name']!r}")
    panels = {"leave_out": "fall without the word", "integrated_gradients": "integrated gradients"}
    places = np.arange(len(words))
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        values = [word[key] for word in words]
        axes.barh(places, values, color=[FOR if value >= 0 else AGAINST for value in values])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(places, names, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"of the {found['score'].replace('_', '-')}", fontsize=9)
        axes.grid(alpha=0.25, axis="x")
    if len(words):
        figure.axes[0].invert_yaxis()
    return figure


def _draw_maps(attention: Explanation, kind: str) -> "Figure":
    """A map for each layer and head; each is as dark as its largest weight."""
    weights = np.abs(np.array(attention["weights"]))
    layers, heads = weights.shape[:2]
    figure = _figure(max(0.95 * heads, 4) + 0.4, 0.95 * layers + 0.8, f"{kind}: layers and heads")
    grid = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer, head]
            axes.imshow(weights[layer, head], cmap="Blues", vmin=0, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if layer == 0:
                axes.set_title(str(head + 1), fontsize=8)
            if head == 0:
                axes.set_ylabel(str(layer + 1), fontsize=8, rotation=0, labelpad=8, va="center")
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    return figure


def _draw_heads(attention: Explanation, kind: str) -> "Figure":
    """Entropy, support and sink of each head."""
    panels = {
        "entropy": ("mean entropy, nats", "{:.1f}"),
        "support_mean": ("mean support, keys", "{:.1f}"),
        "sink_share": ("share of the largest key", "{:.2f}"),
    }
    layers, heads = len(attention["heads"]), len(attention["heads"][0])
    width = max(0.42 * heads, 2.4)
    figure = _figure(3 * width + 1, max(0.42 * layers, 1.2) + 1.2, f"{kind}: heads")
    for axes, (key, (title, form)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        values = np.array([[head[key] for head in layer] for layer in attention["heads"]])
        axes.imshow(values, cmap="Blues", vmin=0, aspect="auto")
        _number(axes, values, [[form.format(x) for x in row] for row in values], 7)
        axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
        axes.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
        axes.tick_params(labelsize=7)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("head", fontsize=8)
    figure.axes[0].set_ylabel("layer", fontsize=8)
    return figure


def _draw_lens(found: Explanation) -> "Figure":
    """Of a language model the likeliest next token by layer and place; else the score by layer."""
    lens = found["logit_lens"]
    if "tokens" not in lens:
        return _draw_classes(found)
    p = np.array(lens["probabilities"])[:, -_MOST_PLACES:]
    names = [[_literal(shown(name)) for name in row[-_MOST_PLACES:]] for row in lens["tokens"]]
    under = [_literal(shown(token["text"])) for token in found["tokens"][-_MOST_PLACES:]]
    title = "logit lens: the likeliest token after each"
    figure = _figure(max(0.5 * len(under), 4) + 1.2, 0.34 * len(p) + 1.4, title)
    axes = figure.subplots()
    image = axes.imshow(p, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    _number(axes, p, names, 7)
    axes.set_xticks(range(len(under)), under, fontsize=8)
    axes.set_yticks(range(len(p)), ["embedding", *(str(i) for i in range(1, len(p)))], fontsize=8)
    axes.set_ylabel("after layer", fontsize=9)
    figure.colorbar(image, label="probability")
    return figure


def _draw_classes(found: Explanation) -> "Figure":
    layers = found["logit_lens"]["layers"]
    figure = _figure(6, 3.4, "logit lens: what the head makes of each layer")
    axes = figure.subplots()
    places = [layer["layer"] for layer in layers]
    for label in layers[-1].get("probabilities", ()):
        axes.plot(places, [each["probabilities"][label] for each in layers], "o-", label=label)
    if "probabilities" in layers[-1]:
        axes.set(ylim=(-0.02, 1.02), ylabel="probability")
        axes.legend(fontsize=8)
    else:
        axes.plot(places, [each["target"] for each in layers], "o-")
        axes.set_ylabel("value")
    axes.set_xticks(places, ["embedding", *(str(place) for place in places[1:])])
    axes.set_xlabel("after layer")
    axes.grid(alpha=0.25)
    return figure


def _number(axes: "Axes", values: np.ndarray, texts: list[list[str]], size: float) -> None:
    """Writes a text on each cell of a map, light where the cell is dark."""
    top = max(float(values.max(initial=0.0)), 1e-12)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 * top else "black"
        label = texts[row][column]
        axes.text(column, row, label, ha="center", va="center", fontsize=size, color=colour)
