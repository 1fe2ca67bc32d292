"""The contract of a dataset: what a run trains on and is evaluated on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lm.config import Config
from lm.data.batches import Groups, RowSource
from lm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lm.data.objectives import Objective


class Dataset(Protocol):
    """Rows of a train and a validation split: a `Corpus` of text, or a task's `TaskData`."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the rows are: their "source", "hash", "splits", ..."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the rows."""
        ...

    @property
    def evaluator(self) -> str:
        """How models are evaluated on it: a name of `lm.evaluation.EVALUATORS`."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that it defines itself, the main one first; (): the objective's."""
        ...

    def rows(self, split: str) -> RowSource:
        """The rows of "train" or "validation"."""
        ...

    def counts(self) -> np.ndarray:
        """How often each token or class is a target in train: int64 [V]."""
        ...

    def objective(self, config: Config) -> "Objective":
        """How rows become a batch."""
        ...

    def row_groups(self, config: Config) -> Groups | None:
        """The groups of training rows from which batches are drawn; None: all rows alike."""
        ...
