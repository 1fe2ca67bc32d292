"""Measures how far the losses of a mesh of 8 devices are from those of one device.

Command  python experiments/meshes.py [KIND ...]
Writes   experiments/results/meshes.json: the kinds of models that are named, or all

20 steps of small models from the same seed on the same rows, on 8 fake CPU devices: a decoder, an
encoder and an encoder-decoder, each with four weightings, on five meshes.
"""

import json
import os
import pathlib
import sys
from typing import Any

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


def compare_meshes(kind: str) -> list[dict[str, Any]]:
    """Prints and gives the largest difference of any step, for each weighting and mesh."""
    cells = []
    for weighting in WEIGHTINGS:
        settings = {**SETTINGS, **KINDS[kind], "attention.weighting": weighting}
        config = override(default.get_config(), settings)
        single = train_losses(config, (1, 1, 1, 1))
        print(f"{kind:16} {weighting:10} one device: {single[0]:.4f} to {single[-1]:.4f}")
        for sizes in MESHES:
            difference = float(np.max(np.abs(train_losses(config, sizes) - single)))
            mesh = "x".join(map(str, sizes))
            cells.append({"weighting": weighting, "mesh": mesh, "largest_difference": difference})
            print(f"{kind:16} {weighting:10} {mesh}  {difference:.2e}", flush=True)
    return cells


def main() -> None:
    """Measures the kinds of models that are named, or all, and writes each when it is done."""
    path = ROOT / "experiments" / "results" / "meshes.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    made_by = {"commit": commit(), "versions": versions()}  # before a file of ours is written
    for kind in sys.argv[1:] or KINDS:
        cells = compare_meshes(kind)
        worst = max(cell["largest_difference"] for cell in cells)
        print(f"{kind}: {len(cells)} cells, at most {worst:.2e} (goal {GOAL:.0e})", flush=True)
        results[kind] = {**made_by, "steps": STEPS, "worst": worst, "cells": cells}
        path.write_text(json.dumps(results, indent=2) + "\n")
    if any(results[kind]["worst"] > GOAL for kind in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
