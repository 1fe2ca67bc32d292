"""Times the seeds of a small model in one program against one run of it.

Command  python experiments/replicas.py
Writes   experiments/results/replicas.json

The model is that of configs/attention.py:tiny. Steps of training alone, with batches on the device,
as `run.py sweep --replicas=8` compiles them: one run, 8 replicas one after the other (map), 8 at
once (vmap). They run in turns, `STEPS` steps each, and a ratio is the median over rounds of the
ratio within a round, of wall time and of processor time, which a busy machine changes less; 8
separate runs take 8 times one run, and start 8 times. On a GPU 8 replicas at once are to take at
most twice the time of one run (`GOAL`); without a GPU the result says so, and its ratios are of
the CPU.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import default
from experiments.timing import interleaved, median_ratio
from lm.config import override
from lm.devices import sharding
from lm.experiment.provenance import commit, versions
from lm.training.program import build_program
from lm.training.random_streams import RunStream
from lm.training.replicas import REPLICATE, joint_step, stack_states

SEEDS, STEPS, ROUNDS = 8, 4, 7
GOAL = 2.0
# As in configs/attention.py:tiny.
MODEL = {
    "batch_size": 16,
    "data.seq_len": 128,
    "model.num_layers": 2,
    "model.d_model": 64,
    "model.num_heads": 4,
    "model.position_embedding": "rotary",
    "mesh.data": 1,
}


def functions() -> dict[str, Callable[[], object]]:
    """What takes `STEPS` steps: of one run, and of all seeds together in each way."""
    config = override(default.get_config(), MODEL)
    program = build_program(config, 256, devices=jax.devices()[:1])
    draw, whole = np.random.default_rng(0), sharding.whole(program.mesh)
    rows = [_rows(program, config.batch_size, draw) for _ in range(SEEDS)]
    roots = [jax.random.key(seed) for seed in range(SEEDS)]
    states = [program.init_state(jax.random.fold_in(root, RunStream.INIT)) for root in roots]
    keys = [jax.random.fold_in(root, RunStream.STEPS) for root in roots]
    together = {name: np.stack([each[name] for each in rows]) for name in rows[0]}
    together = jax.device_put(together, whole)

    def repeated(step: Any, state: Any, rows: Any, key: jax.Array) -> Callable[[], object]:
        held = [state]

        def run() -> None:
            with jax.set_mesh(program.mesh):
                for _ in range(STEPS):
                    held[0], _ = step(held[0], rows, key)
            jax.block_until_ready(held[0])

        return run

    found = {
        replicate: repeated(
            joint_step(program.train_step, replicate),
            stack_states(*states),
            together,
            jnp.stack(keys),
        )
        for replicate in REPLICATE
    }
    alone = sharding.global_batch(program.mesh, rows[0])
    return {"one run": repeated(program.train_step, states[0], alone, keys[0]), **found}


def _rows(program: Any, size: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = program.objective.abstract_rows(size)
    rows = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    tokens, segments = shapes["tokens"], shapes["segments"]
    rows["tokens"] = draw.integers(0, 256, tokens.shape).astype(tokens.dtype)
    rows["segments"] = np.ones(segments.shape, segments.dtype)
    return rows


def _wall_and_processor(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, on the clock and of all of the process's threads."""
    begun = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def main() -> None:
    """Prints and writes the figures."""
    device = jax.devices()[0]
    has_gpu = device.platform == "gpu"
    if not has_gpu:
        print(f"no GPU here: the ratios are of {device.device_kind}, which has no idle units")
    results: dict[str, Any] = {
        "device": device.device_kind,
        "commit": commit(),
        "versions": versions(),
        "seeds": SEEDS,
        "rounds": ROUNDS,
        "most_on_a_gpu": GOAL if has_gpu else f"{GOAL}; not measured, there is no GPU",
    }
    timed = functions()
    for function in timed.values():
        function()
    both = interleaved(timed, ROUNDS, _wall_and_processor)
    for index, kind in enumerate(("wall", "processor")):
        times = {name: [each[index] for each in found] for name, found in both.items()}
        one = times["one run"]
        results[kind] = {
            "milliseconds_per_step_of_one_run": round(1e3 * statistics.median(one) / STEPS, 2),
            **{
                f"{replicate}_over_one_run": round(median_ratio(times[replicate], one), 2)
                for replicate in REPLICATE
            },
        }
    print(json.dumps(results, indent=2))
    path = ROOT / "experiments" / "results" / "replicas.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
