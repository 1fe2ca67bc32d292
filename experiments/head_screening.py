"""Measures how often the k largest logits of a large vocabulary can be found exactly without all of
them, and what that would save.

Command  python experiments/head_screening.py [--folder=DIR]   (ten minutes on 2 cores, most of
         it training; a folder that has the run already is not trained again)
Writes   experiments/results/head_screening.json

A head h W' with a trained vocabulary of 32,768 tokens (BPE, standard library, 200 steps), at hidden
states of held-out text. Two bounds, each of which proves a shortlist or fails:

subspace  W = P W + (1 - P) W with P onto the r main directions of W: h w <= (P h)(P w) +
          |(1 - P) h| |(1 - P) w|. Costs r / D of the product, and the shortlist.
clusters  Tokens in C clusters of centre c and radius t: h w <= h c + |h| t. Costs C / V, and the
          tokens of the clusters that are not excluded.

A step is certain where the bound excludes all but M = V / 16 tokens; else all logits are computed
as well. The cost is in products of h with a vector, as a share of V; what is gathered costs as much
as what is read in order, which favours screening.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KEYS = ("data.tokenizer=bpe", "data.vocab_size=32768", "data.seq_len=128", "model.d_model=128")
KEYS += ("model.num_layers=2", "batch_size=8", "steps=200", "evaluation.num_examples=32")
KEYS += ("log.trackers=()",)
ROWS, MOST = 16, 16  # rows of held-out text; the shortlist is at most V / 16


def train(folder: pathlib.Path) -> pathlib.Path:
    """The run's folder, trained where it is not finished."""
    workdir = folder / "bpe"
    if not (workdir / "result.json").exists():
        command = [sys.executable, "run.py", "train", "--config=configs/clm.py:tiny"]
        command += [f"--workdir={workdir}", *(f"--config.{key}" for key in KEYS)]
        subprocess.run(command, cwd=ROOT, check=True)
    return workdir


def subspace_bounds(hidden: np.ndarray, table: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Upper bounds [N, V] of the logits, and what they cost as a share of all products."""
    _, vectors = np.linalg.eigh(table.T @ table)
    main = vectors[:, -rank:]
    low, short = hidden @ main, table @ main
    left = np.linalg.norm(hidden - low @ main.T, axis=1)
    rest = np.linalg.norm(table - short @ main.T, axis=1)
    return low @ short.T + left[:, None] * rest, rank / table.shape[1]


def cluster_bounds(hidden: np.ndarray, table: np.ndarray, number: int) -> tuple[np.ndarray, float]:
    """Upper bounds [N, V], those of each token's cluster, and what they cost."""
    from scipy.cluster.vq import kmeans2

    centres, chosen = kmeans2(table, number, iter=8, minit="points", rng=0)
    distances = np.linalg.norm(table - centres[chosen], axis=1)
    radii = np.zeros(number)
    np.maximum.at(radii, chosen, distances)
    bounds = hidden @ centres.T + np.linalg.norm(hidden, axis=1)[:, None] * radii
    return bounds[:, chosen], number / len(table)


def screen(logits: np.ndarray, bounds: np.ndarray, cost: float, k: int) -> dict[str, float]:
    """How often a bound is certain, and how many times as fast the head would be."""
    assert (bounds >= logits - 1e-3).all()
    # The k-th largest is known once the shortlist is: a bound below it excludes a token.
    kth = np.partition(logits, -k, axis=1)[:, -k]
    kept = (bounds >= kth[:, None]).mean(axis=1)
    certain = kept <= 1 / MOST
    costs = np.where(certain, cost + kept, cost + 1.0)
    return {
        "certain": float(certain.mean()),
        "tokens_kept": float(np.median(kept)),
        "times_as_fast_where_certain": float(1 / costs[certain].mean()) if certain.any() else 0.0,
        "times_as_fast": float(1 / costs.mean()),
    }


def main() -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs" / "head_screening")
    folder = train(parser.parse_args().folder)

    import jax
    import jax.numpy as jnp
    from etils import epath

    from lm.checkpoints.restore import restore
    from lm.experiment.provenance import commit, versions
    from lm.generation import prompt_batch

    run = restore(epath.Path(folder))
    rows = run.corpus.rows("validation")
    inputs = jnp.stack([rows[number]["tokens"][:-1] for number in range(ROWS)])
    batch = prompt_batch(inputs, jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape))
    with jax.set_mesh(run.program.mesh):
        model = run.program.model
        states: Any = model.apply({"params": run.params}, batch, method="head_inputs")
    head = run.params.get("head", {})
    table = np.asarray(run.params["embedding"] if run.config.output.tied else head["table"])
    hidden = np.asarray(states).reshape(-1, table.shape[1])[::4].astype(np.float64)
    table, results = table.astype(np.float64), {}
    if "bias" in head:  # one more feature, which is 1
        table = np.concatenate([table, np.asarray(head["bias"])[:, None]], axis=1)
        hidden = np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)
    logits = hidden @ table.T
    bounds = {f"subspace of {r}": subspace_bounds(hidden, table, r) for r in (16, 32, 64)}
    bounds |= {f"{c} clusters": cluster_bounds(hidden, table, c) for c in (256, 1024)}
    for name, (bound, cost) in bounds.items():
        for k in (1, 40):
            results[f"{name}, k = {k}"] = found = screen(logits, bound, cost, k)
            print(
                f"{name}, k = {k}: certain at {found['certain']:.0%} of positions, "
                f"{found['tokens_kept']:.1%} of tokens kept, {found['times_as_fast']:.2f} times as "
                "fast at most"
            )
    end = json.loads((folder / "result.json").read_text())
    results |= {"nats_per_token": end["eval/nats_per_token"], "positions": len(hidden)}
    results |= {"vocab_size": len(table), "commit": commit(), "versions": versions()}
    written = ROOT / "experiments" / "results" / "head_screening.json"
    written.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
