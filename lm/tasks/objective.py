"""What do the rows of a task teach? They carry their own targets: labels at the places that the
head reads, or, where it writes, words with the weight of each.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.data.objectives import Objective, causal, positions_within
from lm.model.transformer import Batch
from lm.tasks.base import Task
from lm.tasks.layout import Layout


@dataclasses.dataclass(frozen=True)
class Labelled(Objective):
    """Rows of `lm.tasks` to batches; draws nothing.

    Attributes:
      task: what the rows are for.
      layout: what they are made of.
    """

    task: Task
    layout: Layout

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`: targets and weights are [B, T], T of what the task asks of a row."""
        del key
        if self.task.words:
            return self._written(rows)
        segments = rows["segments"]
        alone = jnp.broadcast_to(jnp.arange(self.length), segments.shape)
        return Batch(
            inputs=rows["inputs"],
            targets=rows["targets"],
            weights=rows["weights"],
            segments=segments,
            positions=positions_within(segments) if self.task.packs else alone,
            token_types=rows["types"],
            target_positions=rows.get("target_positions"),
        )

    def _written(self, rows: Mapping[str, jax.Array]) -> Batch:
        batch: Any = causal(rows)
        batch = batch.replace(weights=rows["weights"])
        if not self.layout.memory:
            return batch
        segments = rows["encoder_segments"]
        return batch.replace(
            encoder_inputs=rows["encoder_tokens"],
            encoder_segments=segments,
            encoder_positions=positions_within(segments),
        )

    def abstract_rows(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of B rows: those of `Task.abstract`, and "row", [B]."""
        fields = self.task.abstract(self.layout) | {"row": jnp.zeros((), jnp.int32)}
        return {
            name: jax.ShapeDtypeStruct((size, *field.shape), field.dtype)
            for name, field in fields.items()
        }
