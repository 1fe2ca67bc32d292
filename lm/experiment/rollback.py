"""Takes a run back to a checkpoint from before an alarm, and on from there with other data."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.data.files import to_json, write_text
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError
from lm.training.hooks import RollBack
from lm.training.metric_writer import read_metrics
from lm.training.program import Program
from lm.training.train_state import NOT_SAVED, TrainState

# In a workdir: a line for each time that the run went back: from which step, to which, and why.
ROLLBACKS = "rollbacks.jsonl"


class Rollbacks:
    """The times that a run has gone back.

    A run that goes back from step n to the checkpoint of step c leaves out the batches of steps c +
    1 to n. Which batches a step has follows from the file alone, so that a run that goes on has the
    same.
    """

    def __init__(self, program: Program, workdir: epath.Path):
        self.program, self.file = program, workdir / ROLLBACKS
        self.records: list[dict[str, Any]] = from_main(lambda: read_metrics(self.file))

    def batches(self, read: Callable[[int], Iterator[Any]], start: int) -> Iterator[Any]:
        """The batches of the steps after `start`; `read(k)` gives those from the k-th on."""
        later = sorted({each["to"] for each in self.records if each["to"] > start})
        for begin, end in itertools.pairwise((start, *later, sys.maxsize)):
            left_out = sum(r["step"] - r["to"] for r in self.records if r["to"] <= begin)
            yield from itertools.islice(read(begin + left_out), end - begin)

    def go_back(self, alarm: RollBack, state: TrainState, checkpoints: Checkpoints) -> TrainState:
        """The state to go on with after an alarm: that of the newest checkpoint before it, of those
        that are saved on schedule, so that an interruption, which saves too, does not matter.

        Raises:
          UserError: where there is none, or the run has gone back as often as it may.
        """
        config = self.program.config
        most, done = config.alarm.max_rollbacks, len(self.records)
        if done >= most:
            raise UserError(
                f"{alarm}; the run has gone back {done} of config.alarm.max_rollbacks = {most} "
                "times; begin again in another --workdir with a lower "
                "config.optimizer.learning_rate or a clip_norm, or raise max_rollbacks"
            )
        checkpoints.wait()
        scheduled = [s for s in checkpoints.steps if s % config.checkpoint.every == 0]
        to = max((step for step in scheduled if step < alarm.step), default=None)
        if to is None:
            raise UserError(
                f"{alarm}; no checkpoint is there to go back to; lower config.checkpoint.every = "
                f"{config.checkpoint.every} or the learning rate, in another --workdir"
            )
        checkpoints.drop_after(to)
        self.records.append({"step": alarm.step, "to": to, "reason": alarm.reason})
        if is_main():
            write_text(self.file, "".join(to_json(each) + "\n" for each in self.records))
        print(
            f"{alarm}; goes back to step {to} and on with other data, {done + 1} of {most} times",
            file=sys.stderr,
            flush=True,
        )
        kept = {name: getattr(state, name) for name in NOT_SAVED}
        for leaf in jax.tree.leaves(state.saved):
            leaf.delete()  # else there were two states for a while
        saved = checkpoints.load(self.program.abstract_state.saved, to)
        return saved.replace(**kept)
