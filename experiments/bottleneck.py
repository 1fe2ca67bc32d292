"""How far are heads from the truth at each size of the features, and what do their spectra show?

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

import jax
import numpy as np
from etils import epath
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import bottleneck
from lm.diagnose import diagnose
from lm.diagnose.spectrum import NOISE
from lm.figure import MUTED
from lm.restore import restore
from lm.sweep import points
from lm.train import read_json

RESULTS = pathlib.Path(__file__).parent / "results"
CONTEXTS = 512


def measured(workdir: epath.Path) -> list[dict]:
    """A record for each head and size: means over seeds, and the spectra of the first seed."""
    config = bottleneck.get_config("tiny")
    rows = list(bottleneck.sweep("tiny"))
    groups: dict[str, list] = {}
    for point in points(config, rows, bottleneck.SEEDS, workdir):
        groups.setdefault(point.row, []).append(point)
    records = []
    for overrides, group in zip(rows, groups.values(), strict=True):
        found = []
        for point in group:
            run = restore(point.workdir)
            with jax.set_mesh(run.program.mesh):
                found.append(diagnose(run, CONTEXTS))
        gaps = [read_json(point.workdir / "result.json")[bottleneck.METRIC] for point in group]
        cap = overrides.get("output.cap")
        records.append(
            {
                "head": overrides["output.head"] + (f", cap {cap:g}" if cap else ""),
                "features": overrides["model.features"],
                "gap": statistics.fmean(gaps),
                "interval": half_width(gaps),
                "gaps": gaps,
                **{key: mean(found, *key.split(".")) for key in COLUMNS},
                "spectrum": found[0]["spectrum"],
                "spectrum_truth": found[0]["spectrum_truth"],
            }
        )
        print(line(records[-1]), flush=True)
    return records


COLUMNS = {
    "spectrum.rank": "rank",
    "spectrum.entropy_rank": "entropy rank",
    "spectrum_centred.rank": "centred rank",
    "spectrum_centred.entropy_rank": "centred entropy rank",
    "gradient.share": "gradient that passes",
    "argmax.never": "never argmax, of 65",
    "calibration.expected_calibration_error": "calibration error",
    "calibration.of_it_by_chance": "by chance",
}


def mean(found: list[dict], group: str, key: str) -> float | None:
    """Over seeds; None where the head does not allow the measurement."""
    values = [each[group].get(key) for each in found]
    return None if None in values else statistics.fmean(values)


def half_width(values: list[float]) -> float:
    """Half of the 95 % Student interval of the mean."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


def line(record: dict) -> str:
    """A row of the Markdown table."""
    numbers = ["" if record[key] is None else f"{record[key]:.3g}" for key in COLUMNS]
    gap = f"{record['gap']:.4f} ± {record['interval']:.4f}"
    return f"| {record['head']} | {record['features']} | {gap} | {' | '.join(numbers)} |"


def markdown(records: list[dict]) -> str:
    """The table; the last line is the truth's."""
    truth = records[0]["spectrum_truth"]
    names = ["head", "features", "gap in nats [95 %]", *COLUMNS.values()]
    return "\n".join(
        [
            f"| {' | '.join(names)} |",
            f"| {' | '.join(['---', *['---:'] * (len(names) - 1)])} |",
            *map(line, records),
            "",
            f"Means over {len(records[0]['gaps'])} seeds; spectra of {CONTEXTS} held-out contexts. "
            f"The true log-probabilities have rank {truth['rank']} and entropy rank "
            f"{truth['entropy_rank']:.2f} there. A rank counts singular values above {NOISE:g} of "
            "the largest.",
            "",
        ]
    )


def draw(records: list[dict]) -> None:
    """Gaps against features; below, spectra at each size that all heads have."""
    from matplotlib.figure import Figure

    heads = list(dict.fromkeys(record["head"] for record in records))
    colours = dict(zip(heads, ("black", *MUTED), strict=False))
    sizes = sorted({record["features"] for record in records})
    common = [n for n in sizes if len([r for r in records if r["features"] == n]) == len(heads)]
    figure = Figure(figsize=(4.4 * len(common), 9), dpi=150, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    axes = upper.subplots()
    for number, head in enumerate(heads):
        own = [record for record in records if record["head"] == head]
        # A step aside, so that intervals do not cover each other.
        places = [record["features"] * 1.02 ** (number - len(heads) / 2) for record in own]
        gaps, errors = ([record[key] for record in own] for key in ("gap", "interval"))
        axes.errorbar(places, gaps, errors, color=colours[head], marker="o", ms=4, label=head)
    rank = records[0]["spectrum_truth"]["rank"]
    axes.axvline(rank - 1, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        " the rank of the truth, less one",
        (rank - 1, 1),
        xycoords=("data", "axes fraction"),
        va="top",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_yscale("log")
    axes.set_xlabel("features, D")
    axes.set_ylabel("held-out nats per token above the truth")
    axes.set_title("Gap to the true distribution; mean and 95 % interval over seeds", fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    for axes, features in zip(
        np.ravel(lower.subplots(1, len(common), sharey=True)), common, strict=True
    ):
        for record in records:
            if record["features"] == features:
                values = np.array(record["spectrum"]["singular_values"])
                label = f"{record['head']} ({record['spectrum.entropy_rank']:.1f})"
                axes.plot(
                    np.arange(1, len(values) + 1),
                    values / values[0],
                    color=colours[record["head"]],
                    label=label,
                )
        truth = records[0]["spectrum_truth"]
        values = np.array(truth["singular_values"])
        label = f"truth ({truth['entropy_rank']:.1f})"
        axes.plot(
            np.arange(1, len(values) + 1), values / values[0], "--", color="grey", label=label
        )
        axes.axvline(features + 1, color="black", linewidth=0.8, linestyle=":")
        axes.axhline(NOISE, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(NOISE / 3000, 2)
        axes.set_xlabel("place; dotted: D + 1")
        axes.set_title(f"Spectra at {features} features (entropy rank)", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower left", fontsize=7)
    np.ravel(lower.axes)[0].set_ylabel("singular value over the largest")
    figure.savefig(RESULTS / "spectra.png")


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
