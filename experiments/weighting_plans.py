"""Plans a language model on a TPU slice with each weighting, by the kernel and by blocks.

Command  python experiments/weighting_plans.py [--on=v5e-16] [WEIGHTING ...]
Needs    pip install ".[tpu]"; no TPU: steps are compiled for a described slice, and not run.
Writes   experiments/results/weighting_plans.json and .md, a weighting after the other

The model is configs/clm.py:base. Without a kernel attention takes 128 queries at a time in one
loop, as it does where there is none. Temporaries are the compiler's, of one device; a step's bound
is the largest of its arithmetic, its memory traffic and its collectives at the device's peak rates
(docs/howto/planning.md), and not a measured time.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import clm
from lm.config import override
from lm.devices.slices import open_slice
from lm.experiment.plan.roofline import make_plan
from lm.experiment.provenance import commit, versions
from lm.softmax import WEIGHTINGS

WAYS = {"kernel": None, "blocks": 128}
# What a step takes by its title and the factor of its unit.
COLUMNS = {
    "temporaries": ("temporaries, GiB", 1),
    "compiling": ("compiling, s", 1),
    "traffic": ("memory traffic, GiB", 1),
    "bound": ("bound of a step, ms", 1),
    "mfu": ("MFU at most, %", 100),
}
# A weighting's options come from the config; `entmax` is between softmax and entmax15.
SETTINGS = {"entmax": {"attention.alpha": 1.25}}


def plan(on: str, weighting: str, query_chunk_size: int | None) -> dict[str, float]:
    """What a training step takes of each device of the slice."""
    config = override(
        clm.get_config("base"),
        {
            "attention.weighting": weighting,
            "attention.query_chunk_size": query_chunk_size,
            **SETTINGS.get(weighting, {}),
        },
    )
    found = make_plan(config, open_slice(on))
    return {
        "temporaries": round(found.train.memory.temporaries / 2**30, 3),
        "compiling": round(found.train.seconds, 1),
        "traffic": round(found.memory_bytes / 2**30, 1),
        "bound": round((found.seconds or 0.0) * 1e3, 1),
        "mfu": round(found.mfu or 0.0, 3),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, blocks before the kernel."""
    titles = " | ".join(title for title, _ in COLUMNS.values())
    lines = [f"| weighting | {titles} |", "| --- |" + " ---: |" * len(COLUMNS)]
    for name in filter(rows.__contains__, WEIGHTINGS):
        ways = [rows[name][way] for way in ("blocks", "kernel") if way in rows[name]]
        cells = [
            " → ".join(f"{way[key] * by:,.4g}" for way in ways) for key, (_, by) in COLUMNS.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, and writes it after each weighting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", default="v5e-16")
    parser.add_argument("weightings", nargs="*", default=list(WEIGHTINGS))
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    path = ROOT / "experiments" / "results" / "weighting_plans.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in arguments.weightings:
        rows[name] = {way: plan(arguments.on, name, size) for way, size in WAYS.items()}
        facts = {"on": arguments.on, "commit": commit(), "versions": versions(), "rows": rows}
        path.write_text(json.dumps(facts, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(rows))
        print(table({name: rows[name]}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
