"""Measures what attention costs to compile for a TPU: processor seconds and temporaries.

Command  python experiments/compile_times.py [WEIGHTING ...]
Needs    pip install ".[tpu]"; no TPU: programs are compiled for a described v5e chip, and not run.
Writes   experiments/results/compile_times.json, where no weighting is named

Forward and backward of causal attention in bfloat16 over 4,096 positions, 8 heads of 128, by the
default path, beside the softmax with all scores at once (the plain path).
"""

import json
import os
import pathlib
import sys
import time

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
)
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.attention import Mask, attend
from lm.experiment.provenance import commit, versions
from lm.softmax import WEIGHTINGS

LENGTH, HEADS, SIZE = 4096, 8, 128
OPTIONS = {"top_k": {"k": 32}}


def described_chip() -> Mesh:
    """A mesh of one v5e chip that is not there."""
    chip = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
    )
    return Mesh(np.array(chip.devices[:1]), ("x",), axis_types=(AxisType.Auto,))


def compile_attention(mesh: Mesh, name: str, query_chunk_size: int | None) -> dict[str, float]:
    """Processor seconds and mebibytes of temporaries of one weighting's gradient."""
    shape = jax.ShapeDtypeStruct(
        (1, LENGTH, HEADS, SIZE), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    record = WEIGHTINGS[name]
    learned = {p: jax.ShapeDtypeStruct((HEADS,), jnp.float32) for p in record.learned}

    def loss(query, key, value, learned, seed):
        y = attend(
            query,
            key,
            value,
            mask=Mask(causal=True),
            weighting=name,
            learned=learned,
            options=OPTIONS.get(name),
            rng=jax.random.key(seed) if record.random else None,
            query_chunk_size=query_chunk_size,
        )
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    with jax.set_mesh(mesh):
        seed = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, learned, seed)
        start = time.process_time()
        compiled = lowered.compile()
        seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "seconds": round(seconds, 1),
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 1),
    }


def main() -> None:
    """Prints and writes a row for each weighting."""
    mesh, names = described_chip(), sys.argv[1:]
    plain = compile_attention(mesh, "softmax", 0)
    print("plain softmax", json.dumps(plain), flush=True)
    rows = {}
    for name in names or WEIGHTINGS:
        rows[name] = compile_attention(mesh, name, None)
        rows[name]["over_plain"] = round(rows[name]["seconds"] / plain["seconds"], 2)
        print(f"{name:16}", json.dumps(rows[name]), flush=True)
    if not names:
        results = {
            "compiled_for": "TPU v5 lite",
            "commit": commit(),
            "versions": versions(),
            "plain_softmax": plain,
            "default": rows,
        }
        path = ROOT / "experiments" / "results" / "compile_times.json"
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
