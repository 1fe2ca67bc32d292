"""Compares LoRA with full fine-tuning: time of a step, and memory as compiled.

Command  python experiments/lora.py
Writes   experiments/results/lora.json

A model of MiniLM's size (6 layers, 384 features, 12 heads, 30,522 words, length 128), as a decoder
on next words and as an encoder on masked ones, float32, AdamW. The methods' steps are interleaved
in one process, so that a noisy machine is noisy for all; ratios are of medians, method over full.
Optimizer and gradient memory is that of the moments and of one gradient of what is trained;
arguments and temporaries are those of the compiled step (`memory_analysis`).
"""

import json
import pathlib
import sys
from typing import Any, cast

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import jax

from configs import default
from experiments.timing import interleaved, medians
from lm.config import override
from lm.devices.cpu import keep_freed_memory
from lm.experiment.provenance import commit, versions
from lm.training.program import build_program

VOCABULARY, LENGTH, BATCH = 30_522, 128, 8
METHODS = {
    "full": {},
    "lora, query and value": {"finetuning.method": "lora"},
    "lora, all matrices": {
        "finetuning.method": "lora",
        "finetuning.target_modules": ("query", "key", "value", "out", "in"),
    },
    "dora, query and value": {"finetuning.method": "dora"},
    "bitfit": {"finetuning.method": "bitfit"},
}
MODELS = {
    "decoder": {"objective": "causal"},
    "encoder": {"objective": "masked", "model.architecture": "encoder"},
}
ROUNDS = 11


def settings(model: str, method: str):
    """The config of one cell."""
    return override(
        default.get_config(),
        {
            "batch_size": BATCH,
            "data.seq_len": LENGTH,
            "model.num_layers": 6,
            "model.d_model": 384,
            "model.num_heads": 12,
            "model.max_seq_len": 512,
            "mesh.data": 1,
            **MODELS[model],
            **METHODS[method],
        },
    )


def prepare(model: str, method: str):
    """A function that makes one step and waits for it, and what the compiler says of memory."""
    program = build_program(settings(model, method), VOCABULARY, tokenizer=cast(Any, _Words()))
    rng = np.random.default_rng(0)
    rows = {
        name: rng.integers(1, VOCABULARY, x.shape).astype(x.dtype)
        if name == "tokens"
        else np.ones(x.shape, x.dtype)
        for name, x in program.objective.abstract_rows(BATCH).items()
    }
    state = program.init_state(jax.random.key(0))
    key = jax.random.key(1)
    compiled = program.train_step.lower(state, rows, key).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    trained, moments = map(jax.tree.leaves, (state.params, state.opt_state))
    memory = {
        "trained_parameters": sum(x.size for x in trained),
        "optimizer_and_gradient": sum(x.nbytes for x in trained + moments),
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, rows, key)
        float(metrics["train/loss"])

    return step, memory


class _Words:
    """Stands for a tokenizer of so many words."""

    name = "stand-in"
    vocab_size = VOCABULARY
    end = mask = 0
    ordinary = word_starts = np.arange(VOCABULARY) > 0


def compare(model: str) -> dict:
    """A table over methods."""
    steps, table = {}, {}
    for method in METHODS:
        steps[method], table[method] = prepare(model, method)
        steps[method]()
        print(model, method, table[method], flush=True)
    times = interleaved(steps, ROUNDS)
    typical = medians(times)
    for method, row in table.items():
        row["seconds"] = round(typical[method], 4)
        row["time_ratio"] = round(row["seconds"] / typical["full"], 3)
        ratios = np.array(times[method]) / np.array(times["full"])
        row["time_ratio_quartiles"] = np.quantile(ratios, (0.25, 0.75)).round(3).tolist()
        for name in ("optimizer_and_gradient", "arguments", "temporaries"):
            row[f"{name}_ratio"] = round(row[name] / table["full"][name], 4)
    return table


def main() -> None:
    """Prints the tables and writes them with device and versions."""
    keep_freed_memory()
    results = {
        "device": jax.devices()[0].device_kind,
        "commit": commit(),
        "versions": versions(),
        "shape": {"batch": BATCH, "length": LENGTH, "vocabulary": VOCABULARY},
    }
    for model in sys.argv[1:] or MODELS:
        results[model] = compare(model)
        print(json.dumps(results[model], indent=2), flush=True)
    path = pathlib.Path(__file__).parent / "results" / "lora.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
