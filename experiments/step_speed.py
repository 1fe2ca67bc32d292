"""Times a training step of every row of an ablation, in turns.

Command  python experiments/step_speed.py --config=configs/attention.py:tiny --workdir=DIR
         with --rounds=20, and those flags of run.py that choose the rows of DIR or set config keys
Writes   WORKDIR/speed.json: by the label of a row, the median over rounds of the ratio of its step
         to the baseline's of the same round, and the seconds that follow from it

In each round every row makes one step, so that a machine that is busy for a while is so for all of
them; ratios are within rounds. Tables and reports of the folder have the ratio as a column, and
`--match=time` reads the seconds. Training itself measures no row's speed: runs of a sweep are at
different times, beside whatever else the machine did. All rows' parameters are in memory at once.
"""

import pathlib
import statistics
import sys
from collections.abc import Callable

import jax
from absl import flags as absl_flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.timing import interleaved, median_ratio
from lm.checkpoints.resolve import resolve_init
from lm.config import Config, override
from lm.data import local_train_batches
from lm.data.bucket import make_folder
from lm.data.files import write_json
from lm.devices import sharding
from lm.devices.cpu import keep_freed_memory
from lm.errors import UserError
from lm.experiment import command_line, flags
from lm.training.prepare import corpus_program, prepare_corpus

ROUNDS = absl_flags.DEFINE_integer("rounds", 20, "steps of each row", 1)


def main() -> int:
    """Measures, prints and writes; the exit status."""
    keep_freed_memory()
    try:
        if words := command_line.parse(sys.argv):
            raise UserError(f"{words[0]!r} is not a flag; flags are --name=value")
        if None in (flags.CONFIG.value, flags.WORKDIR.value):
            raise UserError("give --config=FILE[:ARG] and --workdir=DIR, those of a sweep")
        config, ablation = flags.load_ablation()
        steps = {
            label: _step(override(config, row))
            for label, row in zip(ablation.labels, ablation.whole_rows, strict=True)
        }
    except UserError as error:
        print(f"step_speed.py: {error}", file=sys.stderr)
        return 2
    found = measure(steps, ROUNDS.value)
    for label, row in found.items():
        print(f"{label}: {1e3 * row['seconds']:.2f} ms, {row['ratio']:.3f} of the baseline")
    folder = flags.workdir()
    make_folder(folder)
    write_json(folder / "speed.json", found)
    return 0


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Of each function the median over rounds of its ratio to the first one's time of the same
    round, and the seconds that this makes with the first one's median.
    """
    for step in steps.values():  # the first call compiles, the second is as all others
        step()
        step()
    times = interleaved(steps, rounds)
    base = next(iter(times.values()))
    ratios = {label: median_ratio(values, base) for label, values in times.items()}
    typical = statistics.median(base)
    return {label: {"seconds": typical * r, "ratio": r} for label, r in ratios.items()}


def _step(config: Config) -> Callable[[], object]:
    """A function that makes one step of training and waits for it; each on the same batch."""
    config = resolve_init(config, {})
    corpus = prepare_corpus(config)
    program = corpus_program(config, corpus)
    batches = local_train_batches(
        program.mesh,
        corpus.rows("train"),
        batch_size=config.batch_size,
        seed=config.seed,
        groups=corpus.row_groups(config),
    )
    rows = sharding.global_batch(program.mesh, next(batches))
    key = jax.random.key(config.seed)
    state = program.init_state(key)

    def step() -> None:
        nonlocal state
        state, metrics = program.train_step(state, rows, key)
        jax.block_until_ready(metrics)

    return step


if __name__ == "__main__":
    sys.exit(main())
