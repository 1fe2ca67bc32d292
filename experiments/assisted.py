"""Measures speculative decoding on a trained pair of models: how many drafted tokens are accepted,
and processor time and wall time against decoding without an assistant.

Command  python experiments/assisted.py [--folder=DIR] [--rounds=5]   (half an hour on 2 cores, most
         of it training; a folder that has the pair already is not trained again)
Writes   experiments/results/assisted.json

The pair reads bytes of the standard library: configs/clm.py:tiny with 6 layers of 512 features
(19 million parameters, 200 steps of 8 rows) and with 2 of 64 (0.1 million, 300 steps of 16).
Continuations of 96 tokens of held-out text, for one prompt and for 8 at once, drawn at temperature
1 and greedily. With and without the assistant in turns; ratios are medians over rounds. Processor
time is that of all threads, and depends less on what else runs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.timing import interleaved, median_ratio

LARGE = ("model.num_layers=6", "model.d_model=512", "model.num_heads=8", "model.max_seq_len=512")
LARGE += ("batch_size=8", "steps=200", "log.trackers=()")
SMALL = ("model.num_layers=2", "model.d_model=64", "model.max_seq_len=512", "log.trackers=()")
PROMPT, TOKENS = 64, 96
DRAFTED = (2, 4, 6)


class Times(NamedTuple):
    """Seconds of a call."""

    processor: float
    wall: float


def times(function: Callable[[], object]) -> Times:
    """Processor time of all threads, and wall time, of one call."""
    processor, wall = time.process_time(), time.perf_counter()
    function()
    return Times(time.process_time() - processor, time.perf_counter() - wall)


def train(folder: pathlib.Path, name: str, keys: tuple[str, ...]) -> pathlib.Path:
    """A run's folder, trained where it is not finished."""
    workdir = folder / name
    if not (workdir / "result.json").exists():
        command = [sys.executable, "run.py", "train", "--config=configs/clm.py:tiny"]
        command += [f"--workdir={workdir}", *(f"--config.{key}" for key in keys)]
        subprocess.run(command, cwd=ROOT, check=True)
    return workdir


def compare(
    run: Any, assistant: Any, prompts: list[np.ndarray], greedy: bool, rounds: int
) -> dict[str, Any]:
    """With each number of drafted tokens: those accepted, and ratios of time."""
    from lm.generation import Assistant, AssistedDecoding, SamplingParams, generate

    sampling = SamplingParams(temperature=0.0 if greedy else 1.0)
    given = {"prompts": prompts, "max_new_tokens": TOKENS}
    model, params = run.program.model, run.params
    drawn: dict[str, np.ndarray] = {}
    accepted: dict[int, float] = {}

    def plain() -> None:
        drawn["plain"] = np.stack(list(generate(model, params, **given, **vars(sampling))))

    def assisted(number: int) -> None:
        drafts = Assistant(assistant.program.model, assistant.params, number)
        decoding = AssistedDecoding(model, params, **given, assistant=drafts, sampling=sampling)
        drawn[f"assisted {number}"] = np.stack(list(decoding))
        accepted[number] = decoding.accepted / decoding.rounds

    functions: dict[Any, Callable[[], None]] = {"plain": plain}
    functions |= {number: lambda number=number: assisted(number) for number in DRAFTED}
    for function in functions.values():
        function()
    found = interleaved(functions, rounds, times)
    result: dict[str, Any] = {
        "plain_seconds": {
            kind: [getattr(each, kind) for each in found["plain"]] for kind in Times._fields
        }
    }
    for number in DRAFTED:
        ratios = {
            kind: median_ratio(
                *([getattr(each, kind) for each in found[name]] for name in ("plain", number))
            )
            for kind in Times._fields
        }
        result[f"{number}_drafted"] = {"accepted": accepted[number], "times_as_fast": ratios}
        if greedy:
            same = float(np.mean(drawn["plain"] == drawn[f"assisted {number}"]))
            result[f"{number}_drafted"]["same_tokens"] = same
        print(
            f"{len(prompts)} prompts, {'greedy' if greedy else 'drawn'}, {number} drafted: "
            f"{accepted[number]:.2f} accepted, {ratios['processor']:.2f} times as fast in "
            f"processor time, {ratios['wall']:.2f} in wall time",
            flush=True,
        )
    return result


def main() -> None:
    """Trains, measures and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs" / "assisted")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folders = [train(options.folder, *each) for each in (("large", LARGE), ("small", SMALL))]

    import jax
    from etils import epath

    from lm.checkpoints.restore import restore
    from lm.experiment.provenance import commit, versions

    runs = [restore(epath.Path(folder)) for folder in folders]
    for run in runs:
        print(
            f"{run.config.model.num_layers} layers of {run.config.model.d_model}, step {run.step}"
        )
    run, assistant = runs
    held_out = run.corpus.rows("validation")
    prompts = [np.asarray(held_out[number]["tokens"][:PROMPT], np.int32) for number in range(8)]
    results: dict[str, Any] = {}
    with jax.set_mesh(run.program.mesh):
        for size in (1, 8):
            for kind, greedy in (("drawn", False), ("greedy", True)):
                found = compare(run, assistant, prompts[-size:], greedy, options.rounds)
                results[f"{kind}_batch_{size}"] = found
    ends = [json.loads((folder / "result.json").read_text()) for folder in folders]
    sizes = [sum(p.size for p in jax.tree.leaves(each.params)) for each in runs]
    results |= {
        "bits_per_byte": {
            name: end["eval/bits_per_byte"]
            for name, end in zip(("large", "small"), ends, strict=True)
        },
        "parameters": dict(zip(("large", "small"), sizes, strict=True)),
        "tokens": TOKENS,
        "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "commit": commit(),
        "versions": versions(),
    }
    written = ROOT / "experiments" / "results" / "assisted.json"
    written.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
