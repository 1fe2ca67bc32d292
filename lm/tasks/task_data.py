"""The prepared examples of a task, and the groups of training rows from which batches are drawn."""

import dataclasses
import json

import numpy as np

from lm.config import Config
from lm.data.batches import Groups
from lm.data.cached_rows import CachedRows
from lm.tasks.base import Example, Task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective


@dataclasses.dataclass(frozen=True)
class TaskData(CachedRows):
    """The prepared examples of a task; see `lm.data.Dataset`.

    The manifest says what they are: `task`, `source`, `hash` (of the examples in order, and their
    splits), `tokenizer` (its spec), `labels`, and in `splits`, for each, `examples`, `rows`, and
    `long`, how many examples were left out because no answer begins within a row. Of several
    sources also `tasks`, the `source` and `splits` of each. `inferred_options` and `notes` are what
    `Task.infer_options` found, `answer_statistics` what `Task.answer_statistics` did.

    Attributes:
      task: what they are for, with the options that were inferred (`Task.infer_options`).
      layout: what a row is made of.
      number: which one of several sources is meant, from 0; None: all.
    """

    task: Task
    layout: Layout
    number: int | None = None

    evaluator = "predictions"

    @property
    def metrics(self) -> tuple[str, ...]:
        """See `Dataset`."""
        return tuple(self.task.metrics)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of their numbers."""
        return tuple(self.manifest["labels"])

    def objective(self, config: Config) -> TaskObjective:
        """See `Dataset`."""
        del config
        return TaskObjective(self.tokenizer, self.layout.length, self.task, self.layout)

    def row_groups(self, config: Config) -> Groups | None:
        """See `Dataset`: classes evened out, or rows of earlier tasks replayed."""
        groups, replay = None, config.continual.replay_fraction
        if self.number is not None:
            groups = [(self.train_rows(self.number), 1.0 - replay)]
            groups += [(self.replayed(config), replay)] if replay else []
        if not config.task.balanced:
            return groups
        classes = self.array("classes")  # of each row the first target, which is its class
        whole = [(np.arange(len(classes)), 1.0)]
        return [part for group in groups or whole for part in _by_class(*group, classes)]

    def replayed(self, config: Config) -> np.ndarray:
        """The training rows of earlier tasks that are kept: config.continual.memory_size of each, a
        sample that later tasks have too.
        """
        assert self.number is not None
        kept = []
        for number in range(self.number):
            chance = np.random.default_rng((config.seed, number))
            order = chance.permutation(self.train_rows(number))
            kept.append(order[: config.continual.memory_size or None])
        return np.concatenate(kept)

    def only(self, number: int) -> "TaskData":
        """The same where one of several sources is meant: its examples are held out, and its rows
        are counted. They all share tokenizer, labels and folder.
        """
        manifest = {**self.manifest, **self.manifest["tasks"][number]}
        return dataclasses.replace(self, manifest=manifest, number=number)

    def examples(self) -> list[Example]:
        """The held-out examples; "rows" is the first and the one after the last of their rows."""
        lines = (self.folder / "validation.jsonl").read_text().split("\n")
        found = [json.loads(line) for line in lines if line]
        if self.number is None:
            return found
        span = self._span(self.number, "validation", "examples")
        return found[span.start : span.stop]

    def train_rows(self, number: int) -> np.ndarray:
        """Which training rows are of one of several sources."""
        return np.array(self._span(number, "train", "rows"))

    def _span(self, number: int, split: str, what: str) -> range:
        """Which "examples" or "rows" of all sources are those of one."""
        sizes = [each["splits"][split][what] for each in self.manifest["tasks"]]
        return range(sum(sizes[:number]), sum(sizes[: number + 1]))


def _by_class(rows: np.ndarray, share: float, classes: np.ndarray) -> Groups:
    """Rows parted by class, each class with as large a part of their share."""
    found = np.unique(classes[rows])
    return [(rows[classes[rows] == each], share / len(found)) for each in found]
