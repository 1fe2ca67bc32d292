"""The objective of a task: its rows carry their own targets and weights."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lm.data.objectives import Objective, causal, positions_within
from lm.data.objectives.seq2seq import with_encoder
from lm.model.batch import Batch
from lm.tasks.base import Task
from lm.tasks.layout import Layout


@dataclasses.dataclass(frozen=True)
class TaskObjective(Objective):
    """The objective of a task; draws nothing.

    Attributes:
      task: what the rows are for.
      layout: what they are made of.
    """

    task: Task
    layout: Layout

    @property
    def readout(self) -> str:
        """See `Objective`."""
        return self.task.readout

    @property
    def num_classes(self) -> int:
        """See `Objective`."""
        return self.layout.num_classes

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Objective`."""
        return self.layout.labels

    @property
    def real_targets(self) -> bool:
        """See `Objective`."""
        return self.task.real_targets

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`: targets and weights are [B, T], T of what the task asks of a row."""
        del key
        if self.task.predicts_tokens:
            batch = dataclasses.replace(causal(rows), weights=rows["weights"])
            return with_encoder(batch, rows) if self.layout.has_encoder else batch
        segments = rows["segments"]
        alone = jnp.broadcast_to(jnp.arange(self.length), segments.shape)
        return Batch(
            inputs=rows["inputs"],
            targets=rows["targets"],
            weights=rows["weights"],
            segments=segments,
            positions=positions_within(segments) if self.task.shares_rows else alone,
            token_types=rows["types"],
            target_positions=rows.get("target_positions"),
        )

    def abstract_rows(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of B rows: those of `Task.abstract_row`, and "row", [B]."""
        fields = self.task.abstract_row(self.layout) | {"row": jnp.zeros((), jnp.int32)}
        return {
            name: jax.ShapeDtypeStruct((size, *field.shape), field.dtype)
            for name, field in fields.items()
        }
