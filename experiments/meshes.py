"""Measures how far the losses of a mesh of 8 devices are from those of one device.

Command  python experiments/meshes.py [KIND ...]
Writes   experiments/results/meshes.json, where no kind is named

20 steps of small models from the same seed on the same rows, on 8 fake CPU devices: a decoder, an
encoder and an encoder-decoder, each with four weightings, on five meshes.
"""

import itertools
import json
import os
import pathlib
import sys

os.environ.update(JAX_PLATFORMS="cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

from configs import default
from lm.config import Config, override
from lm.devices import sharding
from lm.experiment.provenance import commit, versions
from lm.training.program import build_program

STEPS, BATCH, LENGTH, VOCAB = 20, 8, 32, 256
SETTINGS = {
    "steps": STEPS,
    "batch_size": BATCH,
    "data.seq_len": LENGTH,
    "schedule.warmup_steps": 2,
    "model.num_layers": 2,
    "model.d_model": 32,
    "model.num_heads": 4,
    "model.max_seq_len": 64,
}
KINDS = {
    "decoder": {},
    "encoder": {"objective": "masked", "model.architecture": "encoder"},
    "encoder_decoder": {"objective": "span", "model.architecture": "encoder_decoder"},
}
WEIGHTINGS = ("softmax", "sigmoid", "entmax15", "sparsemax")
# Data, fsdp, sequence, tensor.
MESHES = ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (2, 1, 4, 1), (2, 1, 2, 2))
GOAL = 1e-5


def random_rows(step: int) -> dict[str, np.ndarray]:
    """Packed rows of random tokens, 16 of the vocabulary, so that there is something to learn; one
    row is half empty.
    """
    rng = np.random.default_rng(step)
    segments = np.cumsum(rng.random((BATCH, LENGTH)) < 0.1, axis=1).astype(np.int32) + 1
    segments[0, 20:] = 0
    tokens = rng.integers(0, 16, (BATCH, LENGTH + 1)).astype(np.int32)
    return {"tokens": tokens, "segments": segments, "bytes": np.full(BATCH, LENGTH, np.int32)}


def train_losses(config: Config, sizes: tuple[int, ...]) -> np.ndarray:
    """The training loss of every step on a mesh of these sizes."""
    mesh = {f"mesh.{axis}": size for axis, size in zip(sharding.AXES, sizes, strict=True)}
    devices = jax.devices()[: int(np.prod(sizes))]
    program = build_program(override(config, mesh), VOCAB, devices=devices)
    losses = []
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))
        for step in range(STEPS):
            rows = sharding.global_batch(program.mesh, random_rows(step))
            state, metrics = program.train_step(state, rows, jax.random.key(1))
            losses.append(float(metrics["train/loss"]))
    return np.array(losses)


def main() -> None:
    """Prints and writes the largest difference of any step, for each model and mesh."""
    names, rows = sys.argv[1:], []
    for kind, weighting in itertools.product(names or KINDS, WEIGHTINGS):
        settings = {**SETTINGS, **KINDS[kind], "attention.weighting": weighting}
        config = override(default.get_config(), settings)
        single = train_losses(config, (1, 1, 1, 1))
        print(f"{kind:16} {weighting:10} one device: {single[0]:.4f} to {single[-1]:.4f}")
        for sizes in MESHES:
            difference = float(np.max(np.abs(train_losses(config, sizes) - single)))
            mesh = "x".join(map(str, sizes))
            rows.append({"kind": kind, "weighting": weighting, "mesh": mesh})
            rows[-1] |= {"losses": [single[0], single[-1]], "largest_difference": difference}
            print(f"{kind:16} {weighting:10} {mesh}  {difference:.2e}", flush=True)
    worst = max(row["largest_difference"] for row in rows)
    print(f"{len(rows)} cells, at most {worst:.2e} (goal {GOAL:.0e})")
    if not names:
        results = {
            "commit": commit(),
            "versions": versions(),
            "steps": STEPS,
            "goal": GOAL,
            "worst": worst,
            "axes": sharding.AXES,
            "cells": rows,
        }
        path = ROOT / "experiments" / "results" / "meshes.json"
        path.write_text(json.dumps(results, indent=2) + "\n")
    if worst > GOAL:
        sys.exit(1)


if __name__ == "__main__":
    main()
