"""Compares three ways to compute the loss of an output head and its gradients on a TPU: with all
logits in memory, in chunks of tokens, and by kernels that store none.

Command  python experiments/tpu_head_kernels.py [--chips=v5e-1,v6e-1] [--vocab=32768,131072,262144]
         [--features=768,2304,4096]
Needs    pip install ".[tpu]"; no TPU: programs are compiled for described chips, and not run.
Writes   experiments/results/tpu_head_kernels.json and .md, a chip and size after the other; with
         --chips= only the table anew, by the rule as it is

The head is the softmax of 8,192 tokens in bfloat16, its table float32. Milliseconds are no measured
time but lower bounds, of the compiled program's instructions one after the other: of each the
larger of its FLOPs at the chip's peak and its bytes at its bandwidth, of a kernel also bundles of
its final schedule times steps of its grid. Estimated are XLA's instructions by the compiler's own
cycles, at which its products have about 0.8 to 0.9 of the peak, and kernels by their bound, of
which nothing else is known. Bytes between chip and memory are operands and results of every
instruction; that a kernel reads the table again for every block of tokens, and adds to its
gradient, follows from its grid. Processor seconds of kernels are with their schedules written. The
rule is that of `lm.output.kernels.choice`; its ratios are those of the bound and of the estimate of
its choice to the least of three ways, or of two where a gibibyte does not hold all logits: the head
holds no more at once.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.devices.accelerators import accelerator_of
from lm.devices.slices import open_slice
from lm.experiment.plan.hlo import Module, read_module
from lm.experiment.plan.traffic import memory_bytes, seconds_in_order
from lm.experiment.provenance import commit, versions
from lm.output import OUTPUTS, base
from lm.output.chunking import chunk_count
from lm.output.kernels import Choice
from lm.output.kernels.tiles import make_tiles

SCHEDULES = pathlib.Path(tempfile.gettempdir()) / f"schedules_{os.getpid()}"
TOKENS = 8192
WAYS = ("materialised", "chunked", "fused")
FLOPS_OF_A_CYCLE = {"v5e-1": 2 * 4 * 128**2, "v6e-1": 2 * 4 * 256**2}
LIMIT = 2**28  # logits that a TPU holds at once, as by lm.output.chunking
UNKNOWN = 2**60  # the compiler's estimates near 2^63 are none


def write_schedules() -> None:
    """Before libtpu is loaded: it writes the schedules of all that it compiles, which takes longer
    than to compile.
    """
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={SCHEDULES} --xla_jf_dump_llo_text=true"
    jax.config.update("jax_platforms", "cpu")


def compile_way(chip: str, vocab: int, features: int, way: str) -> dict[str, Any] | None:
    """Milliseconds, GiB, temporaries in MiB, and processor seconds; None where it does not fit."""
    device = open_slice(chip).devices[0]
    mesh = Mesh(np.array([device]), ("x",))
    whole = NamedSharding(mesh, PartitionSpec())

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    with jax.set_mesh(mesh):
        size = {"materialised": 0, "chunked": TOKENS // chunks(vocab), "fused": None}[way]
    head = OUTPUTS["softmax"](vocab, features, dtype=jnp.bfloat16, token_chunk_size=size)

    def loss(table, hidden, targets, weights):
        variables = {"params": {"table": table}}
        return head.apply(variables, hidden, targets, weights, method="loss_sum")

    arguments = (
        array((vocab, features), jnp.float32),
        array((TOKENS, features), jnp.bfloat16),
        array((TOKENS,), jnp.int32),
        array((TOKENS,), jnp.float32),
    )
    shutil.rmtree(SCHEDULES, ignore_errors=True)
    chosen = mock.patch.object(base, "choose", lambda *_: Choice(way == "fused"))
    with jax.set_mesh(mesh), chosen:
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments)
        tiles = make_tiles(TOKENS, vocab, features, 2)
        start = time.process_time()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        seconds = time.process_time() - start
    module, memory = read_module(compiled.as_text() or ""), compiled.memory_analysis()
    peak = accelerator_of(device.device_kind)
    assert peak is not None
    moved, clock = memory_bytes(module), peak.peak_flops / FLOPS_OF_A_CYCLE[chip]
    bound = seconds_in_order(module, peak.peak_flops, peak.bandwidth)
    estimate = estimated_cycles(module) / clock
    found: dict[str, Any] = {}
    if way == "fused":
        found["bundles"] = bundles()
        again = tiles.token_blocks * vocab * features
        moved += (again - vocab * features) * (2 * 2 + 8)
        kernels = 0.0
        for name, count in found["bundles"].items():
            products, of_table = {"forward": (1, 2), "backward": (3, 2 + 8)}[name]
            kernels += max(
                tiles.token_blocks * tiles.vocab_blocks * count / clock,
                2.0 * products * TOKENS * vocab * features / peak.peak_flops,
                of_table * again / peak.bandwidth,
            )
        bound, estimate = bound + kernels, estimate + kernels
    return {
        "milliseconds": round(bound * 1e3, 2),
        "estimated": round(estimate * 1e3, 2),
        "gibibytes": round(moved / 2**30, 2),
        "temporaries": round(memory.temp_size_in_bytes / 2**20, 1) if memory else 0.0,
        "seconds": round(seconds, 1),
        **found,
    }


def chunks(vocab: int) -> int:
    """How many chunks the rule takes, at least two."""
    return max(2, chunk_count(TOKENS, vocab, None))


def estimated_cycles(module: Module) -> float:
    """The compiler's estimates of all instructions but kernels."""
    total, inside = 0.0, module.fused
    for runs, computation, instruction in module.instructions():
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if found and computation.name not in inside and int(found[1]) < UNKNOWN:
            total += runs * int(found[1])
    return total


def bundles() -> dict[str, int]:
    """Non-empty bundles of one step of each kernel's grid, by its name."""
    found = {}
    for path in SCHEDULES.rglob("*schedule-analysis_final_bundles.txt"):
        if kernel := re.search(r"head_(forward|backward)", path.name):
            count = re.search(r"non empty scheduled bundles: (\d+)", path.read_text())
            found[kernel[1]] = int(count[1]) if count else 0
    return found


def rule(chip: str, vocab: int, features: int) -> str:
    """The way that the head chooses."""
    head = OUTPUTS["softmax"](vocab, features, dtype=jnp.bfloat16)
    mesh = Mesh(np.array(open_slice(chip).devices[:1]), ("x",))
    with jax.set_mesh(mesh):
        if head.choose(TOKENS).fused:
            return "fused"
        return "chunked" if head.chunks(TOKENS, vocab) > 1 else "materialised"


def table(sizes: Mapping[str, Any]) -> str:
    """Markdown: a line for each way; by the rule's, its ratios to the least."""
    lines = [
        "| chip, V, D | way | bound, ms | estimated, ms | GiB moved | temporaries, MiB | "
        "compiling, s | rule: of the least bound, of the least estimate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for place, row in sizes.items():
        chip, *size = place.split(", ")
        vocab, features = (int(number.replace(",", "")) for number in size)
        chosen = rule(chip, vocab, features)
        fitting = [row["chunked"], row["fused"]]
        if TOKENS * vocab <= LIMIT:
            fitting.append(row["materialised"])
        for way in WAYS:
            if row[way] is None:
                lines.append(f"| {place} | {way} | does not fit | | | | | |")
                continue
            names = ("milliseconds", "estimated", "gibibytes", "temporaries", "seconds")
            cells = [place, way, *(f"{row[way][name]:,}" for name in names)]
            ratios = (
                row[way][name] / min(each[name] for each in fitting if each)
                for name in ("milliseconds", "estimated")
            )
            cells.append(", ".join(f"{ratio:.2f}" for ratio in ratios) if way == chosen else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the rows, and writes them to the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", default="v5e-1,v6e-1")
    parser.add_argument("--vocab", default="32768,131072,262144")
    parser.add_argument("--features", default="768,2304,4096")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    path = ROOT / "experiments" / "results" / "tpu_head_kernels.json"
    sizes = json.loads(path.read_text())["sizes"] if path.exists() else {}
    asked = ([x for x in given.split(",") if x] for given in vars(arguments).values())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=write_schedules) as apart:
        for chip, vocab, features in itertools.product(*asked):
            size = chip, int(vocab), int(features)
            fused = apart.submit(compile_way, *size, "fused")
            row: dict[str, Any] = {way: compile_way(*size, way) for way in WAYS[:2]}
            place = f"{chip}, {size[1]:,}, {size[2]:,}"
            sizes[place] = row | {"fused": fused.result(), "commit": commit()}
            print("\n".join(table({place: sizes[place]}).splitlines()[2:]), flush=True)
            facts = {"versions": versions(), "tokens": TOKENS, "sizes": sizes}
            path.write_text(json.dumps(facts, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(sizes))


if __name__ == "__main__":
    main()
