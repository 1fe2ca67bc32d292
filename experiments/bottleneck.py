"""Measures the excess loss of heads at each d_model, and the spectra of their logits.

Command  python run.py table --config=configs/bottleneck.py:tiny --workdir=DIR
         python experiments/bottleneck.py DIR
Writes   experiments/results/bottleneck.md and bottleneck.png (the table of the first command), and
         spectra.md, spectra.json and spectra.png: gap, ranks, gradient, argmax and calibration of
         every point.
"""

import json
import math
import pathlib
import statistics
import sys
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy import stats
from scipy.optimize import minimize

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import bottleneck
from lm.checkpoints.restore import restore
from lm.checkpoints.run_files import read_run_json
from lm.data.synthetic import Language
from lm.evaluation.diagnostics import diagnose
from lm.evaluation.diagnostics.spectrum import NOISE
from lm.experiment.ablation import Ablation, find_folders, make_points
from lm.experiment.ablation.report.plot import MUTED

RESULTS = pathlib.Path(__file__).parent / "results"
CONTEXTS = 512
BEST = "best softmax"
COLUMNS = {
    "spectrum.rank": "rank",
    "spectrum.entropy_rank": "entropy rank",
    "spectrum_centred.rank": "centred rank",
    "spectrum_centred.entropy_rank": "centred entropy rank",
    "gradient.share": "gradient that passes",
    "argmax.never": "never argmax, of 65",
    "calibration.expected_calibration_error": "calibration error",
    "calibration.expected_by_chance": "by chance",
}


def measured(workdir: epath.Path) -> list[dict]:
    """A record for each head and size: its gaps, and the diagnosis of its first seed.

    The last ones are of the best softmax that there is, without training.
    """
    config = bottleneck.get_config("tiny")
    rows = list(bottleneck.sweep("tiny"))
    groups: dict[str, list] = {}
    for point in find_folders(make_points(config, Ablation(rows, bottleneck.SEEDS), workdir)):
        groups.setdefault(point.row, []).append(point)
    records, language = [], None
    for overrides, group in zip(rows, groups.values(), strict=True):
        run = restore(group[0].workdir)
        language = getattr(run.corpus, "language", None)
        with jax.set_mesh(run.program.mesh):
            found = diagnose(run, CONTEXTS)
        gaps = [read_run_json(point.workdir / "result.json")[bottleneck.METRIC] for point in group]
        cap = overrides.get("output.cap")
        records.append(
            {
                "head": overrides["output.head"] + (f", cap {cap:g}" if cap else ""),
                "features": overrides["model.d_model"],
                "gap": statistics.fmean(gaps),
                "interval": half_width(gaps),
                "gaps": gaps,
                **{key: value_of(found, *key.split(".")) for key in COLUMNS},
                "spectrum": short(found["spectrum"]),
                "spectrum_truth": short(found["spectrum_truth"]),
            }
        )
        print(line(records[-1]), flush=True)
    assert language is not None
    for features in sorted({record["features"] for record in records}):
        gap = best_softmax(language, features)
        records.append({"head": BEST, "features": features, "gap": gap})
        print(line(records[-1]), flush=True)
    return records


def short(spectrum: dict) -> dict:
    """Singular values with four digits, those above a thousandth of the rounding."""
    values = np.array(spectrum["singular_values"])
    kept = values[values > 1e-3 * NOISE * values[0]]
    return {**spectrum, "singular_values": [float(f"{value:.4g}") for value in kept]}


def value_of(found: dict, group: str, key: str) -> float | None:
    """None where the head does not allow the measurement."""
    return found[group].get(key)


def half_width(values: list[float]) -> float:
    """Half of the 95 % Student interval of the mean."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def best_softmax(language: Language, features: int) -> float:
    """The gap of the best softmax over logits H W' of so many features, in nats.

    The least sum_s pi_s KL(p_s || softmax(h_s W')) over a free hidden state for each of the
    language's states: no steps, no text and no model below stand in its way. Found by L-BFGS from
    the truncated singular value decomposition of the true log-probabilities.
    """
    truth = language.log_probs.astype(np.float32)
    left, singular, right = np.linalg.svd(truth - truth.mean(axis=1, keepdims=True))
    roots = np.sqrt(singular[:features])
    start = (left[:, :features] * roots, right[:features].T * roots)
    flat, unflatten = jax.flatten_util.ravel_pytree(start)
    often = jnp.asarray(language.stationary, jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def gap(flat):
        hidden, words = unflatten(flat)
        ahead = truth - jax.nn.log_softmax(hidden @ words.T)
        return often @ jnp.sum(jnp.exp(truth) * ahead, axis=1)

    def gap_and_slope(point):
        value, slope = gap(jnp.asarray(point, jnp.float32))
        return float(value), np.asarray(slope, np.float64)

    options = {"maxiter": 3000, "maxfun": 6000}
    return minimize(gap_and_slope, flat, jac=True, method="L-BFGS-B", options=options).fun


def line(record: dict) -> str:
    """A row of the Markdown table."""
    numbers = ["" if record.get(key) is None else f"{record[key]:.3g}" for key in COLUMNS]
    gap = f"{record['gap']:.4f}" + (f" ± {record['interval']:.4f}" if "interval" in record else "")
    return f"| {record['head']} | {record['features']} | {gap} | {' | '.join(numbers)} |"


def markdown(records: list[dict]) -> str:
    """The table, and what it is of."""
    truth = records[0]["spectrum_truth"]
    names = ["head", "features", "gap in nats [95 %]", *COLUMNS.values()]
    return "\n".join(
        [
            f"| {' | '.join(names)} |",
            f"| {' | '.join(['---', *['---:'] * (len(names) - 1)])} |",
            *map(line, records),
            "",
            f"Gaps are means over {len(records[0]['gaps'])} seeds; what follows them is of the "
            f"first seed, spectra of {CONTEXTS} held-out contexts. The true log-probabilities have "
            f"rank {truth['rank']} and entropy rank {truth['entropy_rank']:.2f} there. A rank "
            f"counts singular values above {NOISE:g} of the largest. The best softmax is fitted "
            "to the true distribution itself.",
            "",
        ]
    )


def draw(records: list[dict]) -> None:
    """Gaps against features; below, spectra at each size that all heads have."""
    from matplotlib.figure import Figure

    trained = [record for record in records if record["head"] != BEST]
    heads = list(dict.fromkeys(str(record["head"]) for record in trained))
    colours: dict[str, str] = dict(zip(heads, ("black", *MUTED), strict=False))
    sizes = sorted({record["features"] for record in records})
    groups = {size: [record for record in trained if record["features"] == size] for size in sizes}
    common = [size for size in sizes if len(groups[size]) == len(heads)]
    figure = Figure(figsize=(4.4 * len(common), 9), dpi=150, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    upper, lower = parts
    draw_gaps(upper.subplots(), records, colours, sizes)
    panels = np.ravel(lower.subplots(1, len(common), sharey=True))
    for axes, size in zip(panels, common, strict=True):
        draw_spectra(axes, groups[size], colours)
    panels[0].set_ylabel("singular value over the largest")
    figure.savefig(RESULTS / "spectra.png")


def draw_gaps(axes, records: list[dict], colours: dict[str, str], sizes: list[int]) -> None:
    """A line for each head, with intervals."""
    for number, (head, colour) in enumerate(colours.items()):
        own = [record for record in records if record["head"] == head]
        # A step aside, so that intervals do not cover each other.
        places = [record["features"] * 1.01 ** (number - len(colours) / 2) for record in own]
        gaps, errors = ([record[key] for record in own] for key in ("gap", "interval"))
        axes.errorbar(places, gaps, errors, color=colour, marker="o", ms=4, label=head)
    best = [record for record in records if record["head"] == BEST]
    places, gaps = zip(*((record["features"], record["gap"]) for record in best), strict=True)
    axes.plot(places, gaps, "k--", marker="_", label="best softmax, fitted to the truth")
    needed = records[0]["spectrum_truth"]["rank"] - 1
    axes.axvline(needed, color="black", linewidth=0.8, linestyle=":")
    text = " features that a softmax needs"
    axes.annotate(text, (needed, 1), xycoords=("data", "axes fraction"), va="top")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("features, D")
    axes.set_ylabel("held-out nats per token above the truth")
    axes.set_title("Gap to the true distribution; mean and 95 % interval over seeds", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def draw_spectra(axes, records: list[dict], colours: dict[str, str]) -> None:
    """The spectra of one size of the features, and that of the truth."""
    curves = [(r["head"], r["spectrum"], colours[r["head"]], "-") for r in records]
    curves.append(("truth", records[0]["spectrum_truth"], "grey", "--"))
    for name, spectrum, colour, style in curves:
        values = np.array(spectrum["singular_values"])
        label = f"{name} ({spectrum['entropy_rank']:.1f})"
        axes.plot(
            np.arange(1, len(values) + 1), values / values[0], style, color=colour, label=label
        )
    features = records[0]["features"]
    axes.axvline(features + 1, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(NOISE, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(NOISE / 3000, 2)
    axes.set_xlabel("place; dotted: D + 1, and rounding")
    axes.set_title(f"Spectra at {features} features (entropy rank)", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=7)


def main() -> None:
    """Reads the finished points of the workdir given."""
    workdir = epath.Path(sys.argv[1])
    records = measured(workdir)
    (RESULTS / "bottleneck.md").write_text((workdir / "table.md").read_text())
    (RESULTS / "bottleneck.png").write_bytes((workdir / "table.png").read_bytes())
    (RESULTS / "spectra.md").write_text(markdown(records))
    (RESULTS / "spectra.json").write_text(json.dumps(records) + "\n")
    draw(records)


if __name__ == "__main__":
    main()
