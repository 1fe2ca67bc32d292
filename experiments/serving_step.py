"""Measures a decoding step of 32 slots of a server: its time, and what XLA keeps beside the cache.

Command  python experiments/serving_step.py [--steps=40]    (a minute)
Writes   experiments/results/serving.json, under "step"

The model has 6 layers of 512 features and 256 positions, of which a step reads 128.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.experiment.provenance import commit, versions
from lm.generation import SamplingParams
from lm.serving.slot_sampling import as_arrays
from lm.serving.slots import Slots
from lm.serving.weights import fixed_weights
from lm.training.prepare import shared_program

SLOTS, LENGTH, EXTENT = 32, 256, 128
SIZES = {"model.num_layers": 6, "model.d_model": 512, "model.max_seq_len": LENGTH}


def main() -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    program = shared_program(override(default.get_config(), SIZES), 256, tokenizer=ByteTokenizer())
    with jax.set_mesh(program.mesh):
        weights = fixed_weights(program.init_state(jax.random.key(0)).all_params)
    slots = Slots(program, SLOTS, LENGTH)
    slots.reset(weights, as_arrays(SamplingParams()))
    assert slots.state is not None
    with jax.set_mesh(program.mesh):
        compiled = slots._decode.lower(EXTENT, weights, slots.state).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    times = []
    for _ in range(3 + given.steps):
        slots._offsets[:] = EXTENT - 1
        begin = time.process_time(), time.perf_counter()
        jax.block_until_ready(slots.decode(weights, range(SLOTS)))
        times.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    processor, wall = zip(*times[3:], strict=True)
    result = {
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "cache_mb": sum(jnp.asarray(x).nbytes for x in jax.tree.leaves(slots.state.cache)) / 1e6,
        "processor_seconds_median": statistics.median(processor),
        "seconds": {"median": statistics.median(wall), "least": min(wall)},
        "load_of_the_machine": os.getloadavg(),
        "commit": commit(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))
    written = ROOT / "experiments" / "results" / "serving.json"
    found = json.loads(written.read_text()) if written.exists() else {}
    written.write_text(json.dumps(found | {"step": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
