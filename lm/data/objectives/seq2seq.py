"""Sequence to sequence: the second text of a pair is predicted from the first."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lm.data.objectives.base import Objective
from lm.data.objectives.causal import causal, positions_within
from lm.model.batch import Batch


class Seq2seq(Objective):
    """The encoder reads a text, and the decoder predicts its answer from left to right.

    Bits per byte are of the answers' text, so that tokenizers can be compared.
    """

    architecture = "encoder_decoder"
    metric = "eval/bits_per_byte"
    pairs = True

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`; draws nothing."""
        del key
        return with_encoder(causal(rows), rows)

    def abstract_rows(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Also "encoder_tokens" and "encoder_segments" [B, L]: what the encoder reads."""
        side = jax.ShapeDtypeStruct((size, self.length), jnp.int32)
        names = ("encoder_tokens", "encoder_segments")
        return super().abstract_rows(size) | dict.fromkeys(names, side)


def with_encoder(batch: Batch, rows: Mapping[str, jax.Array]) -> Batch:
    """The same, with what the encoder reads: "encoder_tokens" and "encoder_segments" [B, L]."""
    segments = rows["encoder_segments"]
    return dataclasses.replace(
        batch,
        encoder_inputs=rows["encoder_tokens"],
        encoder_segments=segments,
        encoder_positions=positions_within(segments),
    )
