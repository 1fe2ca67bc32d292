"""Measures time and memory of long attention in blocks, for every weighting.

Command  python experiments/attention.py            (a few minutes)
Writes   experiments/results/attention_blocks.json and .md

Forward and backward, against `jax.nn.dot_product_attention` in one run, interleaved; ratios are of
medians. On a CPU [1, 4096, 8, 64] causal float32, against its default. On an NVIDIA GPU
[8, 4096, 16, 128] causal bfloat16, against cuDNN. Temporaries are the compiler's own count at four
lengths, for every weighting.
"""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.timing import interleaved, medians
from lm.attention import Mask, attend
from lm.experiment.provenance import commit, versions
from lm.softmax import WEIGHTINGS

ON_GPU = jax.default_backend() == "gpu"
BATCH, LENGTH, HEADS, SIZE = (8, 4096, 16, 128) if ON_GPU else (1, 4096, 8, 64)
DTYPE = jnp.bfloat16 if ON_GPU else jnp.float32
LENGTHS = (1024, 2048, 4096, 8192)
ROUNDS = 9 if ON_GPU else 5
TIMED = ("softmax", "softcap", "sink", "sigmoid", "sparsemax", "entmax15")


def reference(query, key, value):
    """What JAX has."""
    implementation = "cudnn" if ON_GPU else None
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=True, implementation=implementation
    )


def blocked(name: str, block: int | None = None):
    """What `attend` chooses by itself at this length, or blocks of a size."""
    learned = {parameter: jnp.ones(HEADS) for parameter in WEIGHTINGS[name].learned}
    rng = jax.random.key(0) if WEIGHTINGS[name].random else None

    def function(query, key, value):
        own = {"weighting": name, "learned": learned, "rng": rng, "query_chunk_size": block}
        return attend(query, key, value, mask=Mask(causal=True), **own)

    return function


def compile_gradient(function, length: int):
    """The compiled forward and backward pass at a length."""
    shape = jax.ShapeDtypeStruct((BATCH, length, HEADS, SIZE), DTYPE)

    def both(query, key, value, direction):
        context, gradient = jax.vjp(function, query, key, value)
        return context, gradient(direction)

    return jax.jit(both).lower(shape, shape, shape, shape).compile()


def megabytes(compiled) -> float:
    """Temporaries of a compiled program."""
    return round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)


def times(programs: dict) -> dict[str, float]:
    """Median seconds, interleaved."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (BATCH, LENGTH, HEADS, SIZE)
    arrays = [jax.random.normal(key, shape, DTYPE) for key in keys]

    def run(compiled):
        jax.block_until_ready(compiled(*arrays))

    functions = {name: functools.partial(run, compiled) for name, compiled in programs.items()}
    interleaved(functions, 1)  # the first calls are not timed
    return medians(interleaved(functions, ROUNDS))


def main() -> None:
    """Prints and writes ratios and the table of temporaries."""
    compiled = {"reference": compile_gradient(reference, LENGTH)}
    for name in TIMED:
        compiled[name] = compile_gradient(blocked(name), LENGTH)
    found = times(compiled)
    ratios = {
        name: {
            "milliseconds": round(1e3 * seconds, 2),
            "time_ratio": round(seconds / found["reference"], 3),
            "temporaries_ratio": round(
                megabytes(compiled[name]) / max(megabytes(compiled["reference"]), 0.1), 4
            ),
        }
        for name, seconds in found.items()
    }
    for name, row in ratios.items():
        print(f"{name:12}", json.dumps(row), flush=True)

    temporaries = {}
    for name in ("reference", *WEIGHTINGS):
        function = reference if name == "reference" else blocked(name, 128)
        temporaries[name] = [megabytes(compile_gradient(function, length)) for length in LENGTHS]
        print(f"{name:16} {temporaries[name]} MB", flush=True)

    results = {
        "device": jax.devices()[0].device_kind,
        "commit": commit(),
        "versions": versions(),
        "shape": [BATCH, LENGTH, HEADS, SIZE],
        "dtype": jnp.dtype(DTYPE).name,
        "against_reference": ratios,
        "lengths": LENGTHS,
        "temporaries_mb": temporaries,
    }
    folder = pathlib.Path(__file__).parent / "results"
    stem = "attention_blocks_gpu" if ON_GPU else "attention_blocks"
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [
        f"Temporaries in MB, forward and backward, [{BATCH}, length, {HEADS}, {SIZE}] causal "
        f"{jnp.dtype(DTYPE).name}, blocks of 128 queries; reference: jax.nn.dot_product_attention.",
        "",
        "| weighting | " + " | ".join(map(str, LENGTHS)) + " |",
        "|---|" + "---:|" * len(LENGTHS),
    ]
    lines += [f"| {n} | " + " | ".join(map(str, row)) + " |" for n, row in temporaries.items()]
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
