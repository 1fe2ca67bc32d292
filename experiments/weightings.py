"""Times the entmax weightings against the softmax and the PyPI package entmax.

Command  pip install -e ".[parity]"
         python experiments/weightings.py
Writes   experiments/results/weightings.json

Weights of normal scores [4096, 8192] in float32 on the CPU, and weights with their gradient. The
functions of both libraries run one after the other, round after round, so that a noisy machine is
noisy for all; ratios are of medians over the rounds. The package sorts, in torch, and is timed with
all of torch's threads.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.timing import interleaved, medians
from lm.softmax import WEIGHTINGS

SHAPE = (4096, 8192)
ROUNDS, THEIR_ROUNDS = 7, 3
OURS = {
    "softmax": jax.nn.softmax,
    "sparsemax": WEIGHTINGS["sparsemax"].apply,
    "entmax15": WEIGHTINGS["entmax15"].apply,
    "entmax, alpha 1.3": lambda scores: WEIGHTINGS["entmax"].apply(scores, alpha=1.3),
    "top_k, k 32": WEIGHTINGS["top_k"].apply,
}
# The goals: our time over the softmax's; theirs over ours.
AT_MOST = {"sparsemax": 2.5, "entmax15": 2.5, "entmax, alpha 1.3": 6.0}
GRADIENT_AT_MOST = {"sparsemax": 3.0, "entmax15": 3.0}
AT_LEAST = {"sparsemax": 15.0, "entmax15": 20.0}


def forward(function, scores):
    """A compiled call that waits for the weights."""
    compiled = jax.jit(function)
    return lambda: compiled(scores).block_until_ready()


def gradient(function, scores, direction):
    """The same for weights and the gradient of their sum with a direction."""

    def both(scores, direction):
        weights, pull = jax.vjp(function, scores)
        return weights, pull(direction)[0]

    compiled = jax.jit(both)
    return lambda: jax.block_until_ready(compiled(scores, direction))


def main() -> None:
    """Prints the rows and writes them with device and versions."""
    from importlib.metadata import version

    import entmax
    import torch

    from lm.experiment.provenance import commit, versions

    rng = np.random.default_rng(0)
    scores, direction = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))
    arrays = jnp.asarray(scores), jnp.asarray(direction)
    tensor = torch.from_numpy(scores)
    functions = {(name, "forward"): forward(f, arrays[0]) for name, f in OURS.items()}
    functions |= {(name, "gradient"): gradient(f, *arrays) for name, f in OURS.items()}
    theirs = {
        (name, "package"): functools.partial(getattr(entmax, name), tensor, -1) for name in AT_LEAST
    }
    interleaved(functions, 1)  # the first calls compile
    times = interleaved(functions | theirs, THEIR_ROUNDS)
    for key, more in interleaved(functions, ROUNDS - THEIR_ROUNDS).items():
        times[key] += more
    median = medians(times)
    rows = []
    for name in OURS:
        row: dict[str, Any] = {"name": name}
        for kind, goals in (("forward", AT_MOST), ("gradient", GRADIENT_AT_MOST)):
            row[f"{kind}_ms"] = round(1e3 * median[name, kind], 1)
            row[f"{kind}_over_softmax"] = round(median[name, kind] / median["softmax", kind], 2)
            if name in goals:
                row[f"{kind}_at_most"] = goals[name]
        if name in AT_LEAST:
            slow = median[name, "package"]
            row["package_ms"] = round(1e3 * slow, 1)
            row["package_over_ours"] = round(slow / median[name, "forward"], 1)
            row["package_at_least"] = AT_LEAST[name]
        rows.append(row)
        print(json.dumps(row), flush=True)
    results = {
        "device": "cpu",
        "commit": commit(),
        "versions": versions() | {name: version(name) for name in ("torch", "entmax")},
        "shape": SHAPE,
        "rounds": [ROUNDS, THEIR_ROUNDS],
        "torch_threads": torch.get_num_threads(),
        "rows": rows,
    }
    path = pathlib.Path(__file__).parent / "results" / "weightings.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
