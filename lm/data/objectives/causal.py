"""Next-token prediction from left to right."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lm.data.objectives.base import Objective
from lm.model.batch import Batch


class Causal(Objective):
    """Next-token prediction by a decoder; draws nothing."""

    metric = "eval/bits_per_byte"

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `causal`."""
        del key
        batch = causal(rows)
        return dataclasses.replace(batch, inputs=self.opened(batch.inputs))


def causal(rows: Mapping[str, jax.Array]) -> Batch:
    """Next-token prediction: position i predicts token i + 1 from its document's tokens up to i.

    Args:
      rows: "tokens" [B, L+1] and "segments" [B, L], 0 at padding.

    Returns:
      A batch [B, L] with weight one on every real position.
    """
    tokens, segments = rows["tokens"], rows["segments"]
    return Batch(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(segments > 0).astype(jnp.float32),
        segments=segments,
        positions=positions_within(segments),
    )


def positions_within(segments: jax.Array) -> jax.Array:
    """Place of each position within its document, counted from 0: [B, L] -> [B, L]."""
    places = jnp.arange(segments.shape[1])
    return places - jax.lax.cummax(jnp.where(opens(segments), places, 0), axis=1)


def opens(segments: jax.Array) -> jax.Array:
    """True where a document or the padding begins within a row, [B, L] -> [B, L]."""
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
