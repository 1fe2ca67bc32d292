"""Times a training step against Hugging Face transformers' GPT-2 in torch.

Command  pip install -e ".[parity]"
         python experiments/training_step.py
Writes   experiments/results/training_step.json

Both sides train the same decoder (4 layers, 256 features, 4 heads, length 256, batch 8, float32,
AdamW, gradients clipped to norm 1) on random tokens on the CPU; ours with document segments, as in
real runs. Each side lives in a process of its own, so that neither suffers from the other's idle
threads; steps and matrix products are interleaved, so that a noisy machine is noisy for all, and
ratios are of medians. The share of peak is of the largest rate of a float32 product, by either
library, in the same run. Activation "gelu_new" is GPT-2's own; "gelu_pytorch_tanh" is the same
function in one torch kernel. "kept": both processes keep freed memory, as run.py does.
"""

import functools
import json
import math
import multiprocessing
import operator
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.peers import gpt2_trainer
from experiments.timing import interleaved, medians, seconds
from lm.devices.cpu import keep_freed_memory

BATCH, LENGTH, LAYERS, FEATURES, HEADS = 8, 256, 4, 256, 4
VOCABULARIES = (256, 32_000)
ROUNDS = 25
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
PRODUCTS = ((2048, 1024, 256), (2048, 256, 1024), (2048, 2048, 2048))


def ours(vocab_size: int):
    """A function that makes one step and waits for it, and the FLOPs of that step."""
    import jax

    from configs import default
    from lm.config import override
    from lm.training.profiling.flops import flops_per_token
    from lm.training.program import build_program

    config = override(
        default.get_config(),
        {
            "batch_size": BATCH,
            "data.seq_len": LENGTH,
            "model.num_layers": LAYERS,
            "model.d_model": FEATURES,
            "model.num_heads": HEADS,
            "model.max_seq_len": LENGTH,
            "mesh.data": 1,
        },
    )
    program = build_program(config, vocab_size)
    rng = np.random.default_rng(0)
    rows = {
        "tokens": rng.integers(0, vocab_size, (BATCH, LENGTH + 1)).astype(np.int32),
        "segments": np.cumsum(rng.random((BATCH, LENGTH)) < 0.01, axis=1).astype(np.int32) + 1,
    }
    state = program.init_state(jax.random.key(0))
    key = jax.random.key(1)

    def step() -> None:
        nonlocal state
        state, metrics = program.train_step(state, rows, key)
        float(metrics["train/loss"])

    return step, flops_per_token(program) * BATCH * LENGTH


def theirs(vocab_size: int, activation: str):
    """The same step of transformers' GPT-2."""
    import torch

    model, optimizer = gpt2_trainer(vocab_size, LENGTH, LAYERS, FEATURES, HEADS, activation)
    tokens = torch.randint(0, vocab_size, (BATCH, LENGTH))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def product(library: str, m: int, k: int, n: int):
    """A function that makes one float32 product [m, k] x [k, n]."""
    if library == "torch":
        import torch

        a, b = torch.rand(m, k), torch.rand(k, n)
        return lambda: a @ b
    import jax

    a, b = (
        jax.random.normal(jax.random.key(0), (m, k)),
        jax.random.normal(jax.random.key(1), (k, n)),
    )
    multiply = jax.jit(jax.numpy.matmul)
    return lambda: multiply(a, b).block_until_ready()


def work(pipe, library: str, vocab_size: int, activations: tuple[str, ...], kept: bool) -> None:
    """A process: times on request one step (by activation) or one product (by shape)."""
    if kept:
        keep_freed_memory()
    functions, flops = {}, None
    if library == "jax":
        functions["ours"], flops = ours(vocab_size)
    for activation in activations:
        functions[activation] = theirs(vocab_size, activation)
    for shape in PRODUCTS:
        functions[shape] = product(library, *shape)
    for function in functions.values():
        for _ in range(2):
            function()
    pipe.send(flops)
    while (name := pipe.recv()) is not None:
        pipe.send(seconds(functions[name]))


def compare(vocab_size: int, kept: bool) -> dict:
    """One table row: tokens/s, ratios and shares for a vocabulary."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for library, activations in (("jax", ()), ("torch", ACTIVATIONS)):
        pipes[library], end = context.Pipe()
        arguments = (end, library, vocab_size, activations, kept)
        processes.append(context.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
    flops = [pipes["jax"].recv(), pipes["torch"].recv()][0]

    def ask(library: str, name) -> float:
        pipes[library].send(name)
        return pipes[library].recv()

    steps = [("jax", "ours"), *(("torch", activation) for activation in ACTIVATIONS)]
    products = [(library, shape) for shape in PRODUCTS for library in pipes]
    asked = {key: functools.partial(ask, *key) for key in (*steps, *products)}
    found = interleaved(asked, ROUNDS, measure=operator.call)  # the processes have the clocks
    best = max(2 * math.prod(shape) / min(found[library, shape]) for library, shape in products)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    times = {name: found[library, name] for library, name in steps}
    typical = medians(times)
    row = {"vocabulary": vocab_size, "kept": kept, "peak_gflops": round(best / 1e9, 1)}
    for name, median in typical.items():
        row[name] = {
            "tokens_per_second": round(BATCH * LENGTH / median, 1),
            "share_of_peak": round(flops / median / best, 3),
        }
        if name != "ours":
            ratios = np.array(times[name]) / np.array(times["ours"])
            row[name]["our_ratio"] = round(median / typical["ours"], 3)
            row[name]["our_ratio_quartiles"] = np.quantile(ratios, (0.25, 0.75)).round(3).tolist()
    return row


def main() -> None:
    """Prints the rows and writes them with device and versions."""
    from importlib.metadata import version

    from lm.experiment.provenance import commit, versions

    results = {
        "device": "cpu",
        "commit": commit(),
        "versions": versions() | {name: version(name) for name in ("torch", "transformers")},
        "rows": [],
    }
    path = pathlib.Path(__file__).parent / "results" / "training_step.json"
    for vocab_size in VOCABULARIES:
        for kept in (False, True):
            results["rows"].append(compare(vocab_size, kept))
            print(json.dumps(results["rows"][-1]), flush=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
