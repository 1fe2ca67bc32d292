"""Times a training step of GPT-2 small on a GPU against transformers' GPT-2 under torch.compile.

Command  pip install -e ".[gpu,parity]", with a build of torch for the GPU
         python experiments/gpt2_gpu.py
         python experiments/gpt2_gpu.py --tiny    the same on any device, of a size that proves that
                                                  it runs and measures nothing
Writes   experiments/results/gpt2_gpu.json, unless --tiny

Both train the same decoder (124 M parameters, length 1,024) with AdamW and clipping on random
tokens: products in bfloat16, parameters in float32, attention by the library's flash kernel (here
cuDNN's, there `scaled_dot_product_attention`). Each has a process of its own; their steps are
interleaved, and ratios are of medians. MFU is model FLOPs over the accelerator's dense bfloat16
peak. The goal is a ratio of 1.
"""

import functools
import json
import multiprocessing
import operator
import os
import pathlib
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

# JAX else takes most of the GPU's memory, of which the other process needs its part.
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.peers import gpt2_trainer
from experiments.timing import interleaved, median_ratio, medians, seconds

ROUNDS = 30


class Size(NamedTuple):
    """The sizes of a model and its batch."""

    layers: int
    d_model: int
    heads: int
    vocab: int
    length: int
    batch: int


SMALL = Size(12, 768, 12, 50_304, 1_024, 16)
TINY = Size(2, 128, 2, 512, 128, 2)


def ours(size: Size) -> tuple[Callable[[], object], dict[str, Any]]:
    """One step of this project, and what is known of it: FLOPs, device, peak, attention's path."""
    import jax

    from configs import default
    from lm.config import override
    from lm.training.profiling.flops import flops_per_token, peak_flops
    from lm.training.profiling.paths import describe_paths
    from lm.training.program import build_program

    config = override(
        default.get_config(),
        {
            "batch_size": size.batch,
            "data.seq_len": size.length,
            "model.num_layers": size.layers,
            "model.d_model": size.d_model,
            "model.num_heads": size.heads,
            "model.max_seq_len": size.length,
            "model.dtype": "bfloat16",
            "model.scan": False,
            "mesh.data": 1,
        },
    )
    program = build_program(config, size.vocab, devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    rows = {
        "tokens": rng.integers(0, size.vocab, (size.batch, size.length + 1)).astype(np.int32),
        "segments": np.ones((size.batch, size.length), np.int32),
    }
    key = jax.random.key(1)
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))

    def step() -> None:
        nonlocal state
        with jax.set_mesh(program.mesh):
            state, metrics = program.train_step(state, rows, key)
            float(metrics["train/loss"])

    facts = {
        "device": jax.devices()[0].device_kind,
        "flops": flops_per_token(program) * size.batch * size.length,
        "peak": peak_flops(),
        "paths": describe_paths(program),
    }
    return step, facts


def theirs(size: Size) -> tuple[Callable[[], object], dict[str, Any]]:
    """The same step of transformers' GPT-2, compiled by torch."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer = gpt2_trainer(
        size.vocab, size.length, size.layers, size.d_model, size.heads, device=device
    )
    tokens = torch.randint(0, size.vocab, (size.batch, size.length), device=device)

    @torch.compile
    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return model(input_ids=tokens, labels=tokens).loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step, {"torch": torch.__version__, "transformers": transformers.__version__}


SIDES = {"ours": ours, "torch_compile": theirs}


def work(pipe: Connection, side: str, size: Size) -> None:
    """A process: its facts, once its step is compiled; then the seconds of a step for each ask."""
    step, facts = SIDES[side](size)
    for _ in range(3):
        step()
    pipe.send(facts)
    while pipe.recv():
        pipe.send(seconds(step))


def compare(size: Size, rounds: int) -> dict[str, Any]:
    """Tokens/s of both, MFU where the peak is known, and our rate over theirs."""
    context = multiprocessing.get_context("spawn")
    pipes, facts = {}, {}
    for side in SIDES:
        pipes[side], end = context.Pipe()
        context.Process(target=work, args=(end, side, size), daemon=True).start()
        facts |= pipes[side].recv()

    def ask(pipe: Connection) -> float:
        pipe.send(True)
        return pipe.recv()

    steps = {side: functools.partial(ask, pipe) for side, pipe in pipes.items()}
    times = interleaved(steps, rounds, measure=operator.call)  # the processes have the clocks
    for pipe in pipes.values():
        pipe.send(False)
    flops, peak = facts.pop("flops"), facts.pop("peak")
    row: dict[str, Any] = facts | {"size": size._asdict(), "rounds": rounds}
    for side, median in medians(times).items():
        row[side] = {"tokens_per_second": round(size.batch * size.length / median, 1)}
        if peak:
            row[side]["mfu"] = round(flops / median / peak, 4)
    row["ratio"] = round(median_ratio(times["torch_compile"], times["ours"]), 3)
    return row


def main() -> int:
    """Prints the row, and writes it with the commit and versions."""
    import jax

    from lm.experiment.provenance import commit, versions

    tiny = "--tiny" in sys.argv[1:]
    if not tiny and jax.default_backend() != "gpu":
        print("gpt2_gpu.py: JAX finds no GPU; --tiny runs the same on a CPU", file=sys.stderr)
        return 2
    row = compare(TINY if tiny else SMALL, 3 if tiny else ROUNDS)
    result = {"commit": commit(), "versions": versions()} | row
    print(json.dumps(result, indent=2))
    if not tiny:
        path = ROOT / "experiments" / "results" / "gpt2_gpu.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
