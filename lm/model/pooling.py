"""The readouts: which hidden states the output head sees, and what it chooses among. A language
model's head sees all positions and chooses among tokens. A task reads out some of them, and chooses
among labels; or it points, and chooses among the positions or the texts themselves.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from lm.model.batch import Batch

# Hidden states, and what the head chooses among where that is no table of its own.
Seen = tuple[jax.Array, jax.Array | None]
FAR = -1e4  # the logit of what cannot be chosen: its probability is 0 in float32


class AllPositions(nn.Module):
    """Every position, [B, L, D]: language modelling."""

    d_model: int
    query_init: Initializer
    param_dtype: DTypeLike
    extra = 0  # features that a readout adds

    def flat(self, batch: Batch) -> Batch:
        """The batch with one axis of rows."""
        return batch

    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """States [B, T, D] that the head sees, and what it chooses among where that is no table of
        its own: [B, V, D], row by row.
        """
        return hidden, None


class TargetPositions(AllPositions):
    """The positions `batch.target_positions`, [B, T], such as the first token of a text or word."""

    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """See `AllPositions`."""
        return at_targets(hidden, batch), None


class Pooled(AllPositions):
    """act(h W + b) of the first state h of each of a row's T texts, [B, T, D]: what the classifiers
    of BERT and its kin put before their matrix of labels (1810.04805).
    """

    activation: ClassVar[Any]

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """See `AllPositions`; several texts begin at `batch.target_positions`."""
        dtypes = {"dtype": hidden.dtype, "param_dtype": self.param_dtype}
        dense = nn.Dense(self.d_model, kernel_init=self.query_init, name="dense", **dtypes)
        firsts = hidden[:, :1]
        if batch.targets.shape[1] > 1:
            firsts = at_targets(hidden, batch)
        return type(self).activation(dense(firsts)), None


class PooledTanh(Pooled):
    """With tanh, as BERT, ALBERT and RoBERTa have it."""

    activation = staticmethod(jnp.tanh)


class PooledRelu(Pooled):
    """With max(x, 0), as DistilBERT has it."""

    activation = staticmethod(nn.relu)


class PooledGelu(Pooled):
    """With x Phi(x), as ELECTRA has it."""

    activation = staticmethod(functools.partial(nn.gelu, approximate=False))


class Mean(AllPositions):
    """The mean over the positions of each of a row's T texts, [B, T, D]."""

    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """See `AllPositions`; text t is segment t + 1, and one that a row does not have is 0."""
        texts = batch.targets.shape[1]
        if texts == 1:
            return mean(hidden, batch.segments)[:, None], None
        own = [jnp.where(batch.segments == text, text, 0) for text in range(1, texts + 1)]
        each = jax.vmap(mean, in_axes=(None, 0), out_axes=1)
        return each(hidden, jnp.stack(own)), None


class SpanPointer(AllPositions):
    """Points at a row's positions: one learned query for where an answer starts, one for its end.

    The head chooses among the L positions as it would among tokens whose vectors are the hidden
    states, so any head with a table of tokens will do. One more feature, 1 in the query and 0 or
    `FAR` in the table, keeps padding out.
    """

    extra = 1
    queries = 2

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """Queries [B, 2, D + 1] and table [B, L, D + 1]."""
        return self.point(hidden, batch.segments > 0)

    def point(self, table: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries [B, T, D + 1] and the table [B, V, D + 1] in which only `real` [B, V] count."""
        shape = (self.queries, self.d_model)
        query = self.param("query", self.query_init, shape, self.param_dtype).astype(table.dtype)
        query = jnp.pad(query, ((0, 0), (0, 1)), constant_values=1)
        barred = jnp.where(real, 0.0, FAR)[:, :, None].astype(table.dtype)
        queries = jnp.broadcast_to(query, (table.shape[0], *query.shape))
        # A sum, as XLA fuses a concatenation into a Triton kernel that it then cannot compile.
        return queries, _pad_features(table, after=1) + _pad_features(barred, before=self.d_model)


class ChoicePointer(SpanPointer):
    """Points at one of C texts, of a batch with inputs [B, C, L]: at the hidden states in
    `batch.target_positions`, [B, C, 1], or, without these, at the means.
    """

    queries = 1

    def flat(self, batch: Batch) -> Batch:
        """The batch with inputs [B C, L]."""
        names = ("inputs", "segments", "positions", "token_types", "target_positions")
        arrays = {name: getattr(batch, name) for name in names}
        merged = {k: x.reshape(-1, x.shape[-1]) for k, x in arrays.items() if x is not None}
        return dataclasses.replace(batch, **merged)

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """Query [B, 1, D + 1] and table [B, C, D + 1]."""
        if batch.target_positions is None:
            pooled = mean(hidden, batch.segments)
        else:
            pooled = at_targets(hidden, batch)[:, 0]
        rows = batch.targets.shape[0]
        real = jnp.any(batch.segments > 0, axis=1).reshape(rows, -1)
        return self.point(pooled.reshape(rows, real.shape[1], -1), real)


class RankingPointer(ChoicePointer):
    """Points at the C texts of a list as often as it has targets, with one query for all."""

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch) -> Seen:
        """Queries [B, T, D + 1], all the same, and table [B, C, D + 1]."""
        query, table = super().__call__(hidden, batch)
        rows, targets = batch.targets.shape
        return jnp.broadcast_to(query, (rows, targets, query.shape[-1])), table


def _pad_features(x: jax.Array, before: int = 0, after: int = 0) -> jax.Array:
    """[B, V, F] with zeros before and after the features."""
    return jnp.pad(x, ((0, 0), (0, 0), (before, after)))


def at_targets(hidden: jax.Array, batch: Batch) -> jax.Array:
    """Hidden states [B, L, D] at `batch.target_positions` [B, T]: [B, T, D]."""
    assert batch.target_positions is not None
    return jnp.take_along_axis(hidden, batch.target_positions[:, :, None], axis=1)


def mean(hidden: jax.Array, segments: jax.Array) -> jax.Array:
    """Of hidden states [B, L, D] over the positions in a segment above 0: [B, D]; 0 where none."""
    real = (segments > 0).astype(hidden.dtype)
    total = jnp.einsum("bl,bld->bd", real, hidden, preferred_element_type=jnp.float32)
    count = jnp.maximum(jnp.sum(segments > 0, axis=1), 1)
    return (total / count[:, None]).astype(hidden.dtype)


READOUTS = {
    "all_positions": AllPositions,
    "target_positions": TargetPositions,
    "mean": Mean,
    "pooler_tanh": PooledTanh,
    "pooler_relu": PooledRelu,
    "pooler_gelu": PooledGelu,
    "span": SpanPointer,
    "choice": ChoicePointer,
    "ranking": RankingPointer,
}
