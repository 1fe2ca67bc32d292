"""Measures memory and time of the diagnosis of a head with 131,072 tokens.

Command  python experiments/diagnose.py
Writes   experiments/results/diagnose.json

A softmax head of 256 features with random weights, 512 contexts: the spectrum of its
log-probabilities, the surviving gradient of 4 contexts and 8 words tried as argmax, each in a
process of its own. Memory is the most that the process held, beyond what it had with the head and
the contexts in place.
"""

import functools
import json
import multiprocessing
import pathlib
import resource
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lm.evaluation.diagnostics.argmax import direction, token_vectors
from lm.evaluation.diagnostics.gradient import surviving_shares
from lm.evaluation.diagnostics.spectrum import spectra, token_blocks
from lm.experiment.provenance import commit, versions
from lm.output import OUTPUTS

WORDS, FEATURES, CONTEXTS = 131_072, 256, 512


def spectrum(head, params, hidden) -> dict:
    """Ranks and entropy ranks."""
    log_probs = jax.jit(functools.partial(head.apply, method="log_probs"))
    blocks = token_blocks(functools.partial(log_probs, params), hidden, WORDS)
    whole, centred = spectra(blocks)
    return {"rank": whole.rank, "centred_rank": centred.rank, "entropy_rank": whole.entropy_rank}


def gradient(head, params, hidden) -> dict:
    """The mean share, and that of a random gradient."""

    def log_probs(params, state):
        return head.apply(params, state[None], method="log_probs")[0]

    shares = surviving_shares(log_probs, params, hidden[:4], np.arange(4))
    return {"share": float(np.mean(shares)), "random": (FEATURES / WORDS) ** 0.5}


def argmax(head, params, hidden) -> dict:
    """How many of 8 words can never be the argmax."""
    words = token_vectors("softmax", {"head": params["params"]}, tied=False)
    assert words is not None
    return {"never": sum(direction(words, word) is None for word in range(8))}


MEASUREMENTS = {"spectrum": spectrum, "gradient": gradient, "argmax": argmax}


def measure(name: str) -> dict:
    """One measurement, its seconds and its memory."""
    head = OUTPUTS["softmax"](WORDS, FEATURES, table_init=jax.nn.initializers.normal(0.05))
    hidden = np.asarray(jax.random.normal(jax.random.key(0), (CONTEXTS, FEATURES)))
    params = head.init(jax.random.key(1), hidden[:1], np.zeros(1, np.int32), method="loss")
    before, start = megabytes(), time.perf_counter()
    found = MEASUREMENTS[name](head, params, hidden)
    seconds, memory = time.perf_counter() - start, megabytes() - before
    return {"name": name, "seconds": round(seconds, 1), "megabytes": round(memory), **found}


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    """Every measurement in a fresh process."""
    rows = []
    for name in MEASUREMENTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name,)))
        print(json.dumps(rows[-1]), flush=True)
    results = {
        "device": "cpu",
        "commit": commit(),
        "versions": versions(),
        "shape": {"words": WORDS, "features": FEATURES, "contexts": CONTEXTS},
        "matrix_megabytes": CONTEXTS * WORDS * 4 / 1e6,
        "rows": rows,
    }
    path = pathlib.Path(__file__).parent / "results" / "diagnose.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
