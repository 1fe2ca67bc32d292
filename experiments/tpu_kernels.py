"""Compares attention's TPU kernels with JAX's splash attention by the TPU compiler's schedules.

Command  python experiments/tpu_kernels.py [--chips=v5e-1,v6e-1] [--lengths=2048,8192,32768]
Needs    pip install ".[tpu]"; no TPU: kernels are compiled for described chips, and not run.
Writes   experiments/results/tpu_kernels.json and .md, a chip and length after the other

Causal attention of one row in bfloat16, 8 heads of 128. A kernel's cost is the number of bundles of
instructions in its final schedule times the number of tiles that it visits: a lower bound of
cycles, in which no waiting for memory is, and not a measured time. Splash has the best of its
blocks. The loops of kernels that keep whole rows run as often as random scores need; what a
schedule has of them is the difference to that of the same kernel without them. Where 60 % of the
tiles have no weight, these have scores and nothing else.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

DUMP = pathlib.Path(tempfile.mkdtemp())
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true"
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.attention import Mask
from lm.attention.kernels.attention import find_family, kernel_attention, tile_sizes
from lm.attention.kernels.whole_rows import GROUP, WholeRows
from lm.devices.slices import open_slice
from lm.experiment.provenance import commit, versions
from lm.softmax import WEIGHTINGS
from lm.softmax.entmax_threshold import (
    GROUP_SWEEPS,
    first_threshold,
    is_missing,
    newton_step,
    powers,
)

HEADS, SIZE = 8, 128
SPLASH = [(size, fused) for size in (512, 1024) for fused in (False, True)]
NAMES = re.compile(r"attention_(whole_row_forward|forward|\w*gradients\w*)|splash_mha_[a-z]+")
OPTIONS = {"entmax": {"alpha": 1.25}}
EMPTY = 0.6


def compile_gradient(chip: str, length: int, attention: Callable) -> dict[str, Any]:
    """Non-empty bundles of each kernel by its name, processor seconds and temporaries in MiB."""
    mesh = Mesh(np.array(open_slice(chip).devices[:1]), ("x",))
    shape = jax.ShapeDtypeStruct(
        (1, length, HEADS, SIZE), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )

    def both(query, key, value, grads):
        contexts, gradient = jax.vjp(attention, query, key, value)
        return contexts, gradient(grads)

    shutil.rmtree(DUMP, ignore_errors=True)
    with jax.set_mesh(mesh):
        lowered = jax.jit(both).lower(*[shape] * 4)
        start = time.process_time()
        compiled = lowered.compile()
        seconds = time.process_time() - start
    bundles = {}
    for path in DUMP.rglob("*schedule-analysis_final_bundles.txt"):
        if kernel := NAMES.search(path.name):
            found = re.search(r"non empty scheduled bundles: (\d+)", path.read_text())
            bundles[kernel[0]] = int(found[1]) if found else 0
    memory = compiled.memory_analysis()
    temporaries = memory.temp_size_in_bytes / 2**20 if memory else 0.0
    return {"bundles": bundles, "seconds": round(seconds, 1), "temporaries": round(temporaries, 2)}


def by_splash(length: int, size: int, fused: bool) -> Callable:
    """JAX's kernel with blocks of so many queries and keys."""
    names = ["block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"]
    names += ["block_kv_dkv_compute"] + ["block_q_dq", "block_kv_dq"] * (not fused)
    sizes: dict[str, Any] = dict.fromkeys(names, size)
    blocks = splash.BlockSizes(**sizes, use_fused_bwd_kernel=fused)
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * HEADS)

    def attention(query, key, value):
        kernel: Any = splash.make_splash_mha(
            mask, head_shards=1, q_seq_shards=1, block_sizes=blocks
        )
        arrays = (x.swapaxes(1, 2) for x in (query * SIZE**-0.5, key, value))
        return jax.vmap(kernel)(*arrays).swapaxes(1, 2)

    return attention


def by_kernel(name: str, learned: bool = False) -> Callable:
    """Ours, with a weighting's parameters and, if learned, what it may learn, of each head."""
    record = WEIGHTINGS[name]
    names = (*record.learned, *(record.learnable if learned else ()))
    options = {
        k: v for k, v in {**record.options, **OPTIONS.get(name, {})}.items() if k not in names
    }
    per_head = {each: jnp.full(HEADS, 1.5) for each in names}

    def attention(query, key, value):
        mask = Mask(causal=True)
        return kernel_attention(query, key, value, mask, record, options, per_head)

    return attention


def tiles(length: int, queries: int, keys: int) -> int:
    """How many tiles of all heads a causal kernel visits."""
    first, last = np.arange(0, length, keys), np.arange(0, length, queries) + queries - 1
    return HEADS * int((first[None, :] <= last[:, None]).sum())


def splash_cost(chip: str, length: int) -> dict[str, Any]:
    """Millions of bundles of the best blocks."""
    found = []
    for size, fused in SPLASH:
        made = compile_gradient(chip, length, by_splash(length, size, fused))
        visited = tiles(length, size, size)
        forward = made["bundles"]["splash_mha_fwd"] * visited / 1e6
        total = sum(made["bundles"].values()) * visited / 1e6
        found.append(
            {
                "forward": forward,
                "backward": total - forward,
                "blocks": size,
                "fused": fused,
                **made,
            }
        )
    return min(found, key=lambda each: each["forward"] + each["backward"])


def kernel_cost(chip: str, length: int, name: str, learned: bool = False) -> dict[str, Any]:
    """Millions of bundles of one weighting."""
    family, attention = find_family(WEIGHTINGS[name]), by_kernel(name, learned)
    assert family is not None
    made = compile_gradient(chip, length, attention)
    queries, keys = tile_sizes(family, length, length, None)
    millions = tiles(length, queries, keys) / 1e6
    bundles = made["bundles"]
    # Tiles of the backward pass are square.
    backward = sum(each for kernel, each in bundles.items() if "gradients" in kernel)
    backward *= tiles(length, keys, keys) / 1e6
    if not issubclass(family, WholeRows):
        return {"forward": bundles["attention_forward"] * millions, "backward": backward, **made}
    whole, rest, scores = (
        each["bundles"]["attention_whole_row_forward"]
        for each in (made, *without_parts(chip, length, family, attention))
    )
    alpha_of = WEIGHTINGS[name].entmax_alpha
    if alpha_of is None:
        # The least score, two counts and the sum; the schedule has one more, of equal scores.
        count = 4 + halvings(int(WEIGHTINGS[name].options["k"]), length)
        loops = (whole - rest) / 6 * count
    else:
        alpha = 1.5 if learned else float(alpha_of(**OPTIONS.get(name, {})))
        count = sweeps(alpha, length)
        # The schedule has a sweep over all scores twice, and one over a sixteenth of them.
        loops = (whole - rest) / (2 + 1 / GROUP) * (count + GROUP_SWEEPS / GROUP)
    sparse = scores + (1 - EMPTY) * (rest - scores + loops)
    return {
        "forward": (rest + loops) * millions,
        "backward": backward,
        "sparse": sparse * millions + (1 - EMPTY) * backward,
        "sweeps": count,
        **made,
    }


def without_parts(chip: str, length: int, family: type[WholeRows], attention: Callable):
    """A kernel that solves nothing, and one that does not sum values either."""

    def solve(self, found, *_):
        return [found.top] * len(self.saved)

    with mock.patch.object(family, "solve", solve):
        yield compile_gradient(chip, length, attention)
        with mock.patch.object(family, "has_weight", lambda *_: jnp.zeros((), bool)):
            yield compile_gradient(chip, length, attention)


def halvings(k: int, length: int, rows: int = 256) -> int:
    """How often the interval of the k-th of a row of normal scores is halved, in the worst row."""
    scores = np.random.default_rng(0).normal(size=(rows, length)).astype(np.float32)
    low, high = scores.min(1), scores.max(1) + 1
    for count in itertools.count():
        if (low == high).all():
            return count
        middle = (low + high) / 2
        above = (scores >= middle[:, None]).sum(1)
        low, high = np.where(above >= k, middle, low), np.where(above <= k, middle, high)
    raise AssertionError


def sweeps(alpha: float, length: int, rows: int = 256) -> int:
    """How many sweeps over all scores the worst of some rows of normal scores needs."""
    scores = jax.random.normal(jax.random.key(0), (rows, length))
    top = scores.max(1, keepdims=True)
    z = (alpha - 1.0) * (scores - top)
    leaders = z.reshape(rows, GROUP, -1).max(1)
    tau = jnp.full_like(top, first_threshold(alpha))

    def step(values, tau):
        weights, slopes = powers(values - tau, alpha)
        return newton_step(tau, weights.sum(1, keepdims=True), slopes.sum(1, keepdims=True), alpha)

    for _ in range(GROUP_SWEEPS):
        tau = step(leaders, tau)[0]
    for count in itertools.count(1):
        tau, move, _ = step(z, tau)
        if not bool(jnp.any(is_missing(move, length, alpha))):
            return count
    raise AssertionError


def table(kernels: Mapping[str, Any]) -> str:
    """Markdown: each kernel's bundles over splash's."""
    lines = [
        "| chip, keys | weighting | forward | backward | both | both, 60 % of tiles empty "
        "| compiling, s | temporaries, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for place, rows in kernels.items():
        rival = rows["splash"]
        whole = rival["forward"] + rival["backward"]
        for name, row in rows.items():
            if name == "commit":
                continue
            both = (row["forward"] + row["backward"]) / whole
            ratios = row["forward"] / rival["forward"], row["backward"] / rival["backward"], both
            cells = [place, name, *(f"{ratio:.2f}" for ratio in ratios)]
            cells.append(f"{row['sparse'] / whole:.2f}" if "sparse" in row else "")
            cells += [str(row["seconds"]), str(row["temporaries"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the rows, and writes them to the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", default="v5e-1,v6e-1")
    parser.add_argument("--lengths", default="2048,8192,32768")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    path = ROOT / "experiments" / "results" / "tpu_kernels.json"
    kernels = json.loads(path.read_text())["kernels"] if path.exists() else {}
    names = [name for name, record in WEIGHTINGS.items() if find_family(record)]
    for chip, length in itertools.product(
        arguments.chips.split(","), map(int, arguments.lengths.split(","))
    ):
        rows = {"splash": splash_cost(chip, length)}
        for name in names:
            rows[name] = kernel_cost(chip, length, name)
            shown = {chip: {"splash": rows["splash"], name: rows[name]}}
            print(table(shown).splitlines()[-1], flush=True)
        rows["entmax, alpha learned"] = kernel_cost(chip, length, "entmax", learned=True)
        kernels[f"{chip}, {length:,}"] = rows | {"commit": commit()}
        facts = {"versions": versions(), "kernels": kernels}
        path.write_text(json.dumps(facts, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(kernels))
    print(table(kernels))


if __name__ == "__main__":
    main()
