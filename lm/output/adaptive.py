"""The adaptive softmax: rare tokens lie in clusters with smaller vectors, which are computed only
for the positions whose targets are there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lm.output.base import Head
from lm.output.chunked import chunked
from lm.output.chunking import gather_size
from lm.output.frequency import by_frequency
from lm.output.gathered import gathered
from lm.output.logit_stats import logit_stats
from lm.output.loss_and_grad import loss_sum
from lm.output.product import product

_MAX_GATHERED = 512  # tokens of a cluster computed at once, at most

Tail = tuple[jax.Array, jax.Array]  # a cluster's projection and table


class AdaptiveHead(Head):
    """Adaptive softmax (Grave et al. 1609.04309): a head of frequent tokens and one entry for each
    tail cluster; log p = log p_head(cluster) + log p_cluster(token).

    Cluster i has vectors of size D / divisor^(i+1), which its projection makes of h. In `loss_sum`
    the head is computed for all positions, and each cluster in blocks of its own positions, as many
    blocks as the batch needs: exact for every batch, and cheap for those of natural text.

    Attributes:
      cutoffs: ranks at which the tail clusters begin; None: about V / 32 and V / 4.
      divisor: how much smaller each cluster's vectors are than those before it.
      counts: of tokens in the training text, [V]; None: tokens are ordered by frequency.
    """

    cutoffs: tuple[int, ...] | None = None
    divisor: int = 4
    counts: Sequence[int] | np.ndarray | None = None

    tieable = False
    needs_counts = True

    @property
    def training_logits(self) -> int:
        """Those of the head."""
        frequent, *tails = cluster_starts(self.cutoffs, self.vocab_size)
        return frequent + len(tails)

    def setup(self) -> None:
        """Makes the head's table and each cluster's projection and table."""
        self.starts = cluster_starts(self.cutoffs, self.vocab_size)
        self.order, self.ranks = by_frequency(self.counts, self.vocab_size)
        frequent, clusters = self.starts[0], len(self.starts) - 1
        init, dtype = self.table_init, self.param_dtype
        self.head = self.param("head_table", init, (frequent + clusters, self.d_model), dtype)
        tails = []
        for i, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            size = max(1, self.d_model // self.divisor ** (i + 1))
            down = self.param(f"down_{i}_kernel", init, (size, self.d_model), dtype)
            tails.append((down, self.param(f"tail_{i}_table", init, (end - start, size), dtype)))
        self.tails = tails

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N], with every cluster computed for every token."""
        nats = _nats(self.head, hidden, self._entries(targets), self._dtype(hidden))
        for i, tail in enumerate(self.tails):
            member, place = self._places(targets, i)
            own = _tail_nats(tail, hidden, place, self._dtype(hidden))
            nats += jnp.where(member, own, 0.0)
        return nats

    def loss_sum(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """See `Head.loss_sum`."""
        if self.is_initializing():
            return jnp.sum(self.loss(hidden, targets) * weights)
        dtype = self._dtype(hidden)

        def head_loss(table, shared, index, hidden, targets):
            return _nats(table, hidden, targets, dtype)

        def tail_loss(tail, shared, index, hidden, places):
            return _tail_nats(tail, hidden, places, dtype)

        in_chunks = chunked(head_loss, self.chunks(hidden.shape[0], self.training_logits))
        value = loss_sum(in_chunks, self.head, None, hidden, self._entries(targets), weights)
        for i, tail in enumerate(self.tails):
            member, places = self._places(targets, i)
            size = gather_size(len(hidden), 1.0, len(tail[1]), self.token_chunk_size)
            in_blocks = gathered(tail_loss, min(_MAX_GATHERED, size))
            tail_weights = jnp.where(member, weights, 0.0)
            value += loss_sum(in_blocks, tail, None, hidden, places, tail_weights)
        return value

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        head = jax.nn.log_softmax(self.project(hidden, self.head), axis=-1)
        frequent = self.starts[0]
        parts = [head[:, :frequent]]
        for i, tail in enumerate(self.tails):
            own = jax.nn.log_softmax(_tail_logits(tail, hidden, self._dtype(hidden)), axis=-1)
            parts.append(head[:, frequent + i : frequent + i + 1] + own)
        return jnp.concatenate(parts, axis=-1)[:, self.ranks]

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a token for every hidden state, [N]; clusters that none drew are not computed."""
        dtype = self._dtype(hidden)
        keys = jax.random.split(key, 1 + len(self.tails))
        rank = _draw(keys[0], product(hidden, self.head, dtype))
        frequent = self.starts[0]
        entry = rank - frequent
        for i, tail in enumerate(self.tails):
            here = entry == i
            place = jax.lax.cond(
                jnp.any(here),
                lambda tail, key: _draw(key, _tail_logits(tail, hidden, dtype)),
                lambda tail, key: jnp.zeros(len(hidden), jnp.int32),
                tail,
                keys[1 + i],
            )
            rank = jnp.where(here, self.starts[i] + place, rank)
        return jnp.asarray(self.order)[rank]

    def _dtype(self, hidden: jax.Array) -> DTypeLike:
        return jnp.dtype(self.dtype or hidden.dtype)

    def _entries(self, targets: jax.Array) -> jax.Array:
        """The head's entry of each target, or of its cluster."""
        rank = jnp.asarray(self.ranks)[targets]
        cluster = jnp.searchsorted(jnp.asarray(self.starts), rank, side="right") - 1
        return jnp.where(rank < self.starts[0], rank, self.starts[0] + cluster)

    def _places(self, targets: jax.Array, i: int) -> tuple[jax.Array, jax.Array]:
        """Which targets are in cluster i, and their places there (clipped for the others)."""
        place = jnp.asarray(self.ranks)[targets] - self.starts[i]
        size = self.starts[i + 1] - self.starts[i]
        return (place >= 0) & (place < size), jnp.clip(place, 0, size - 1)


def cluster_starts(cutoffs: tuple[int, ...] | None, vocab_size: int) -> tuple[int, ...]:
    """Ranks at which clusters begin, and V at the end.

    Raises:
      ValueError: where cutoffs do not rise from 1 to below V.
    """
    if cutoffs is None:
        cutoffs = tuple(sorted({max(1, vocab_size // 32), max(1, vocab_size // 4)}))
        cutoffs = tuple(cutoff for cutoff in cutoffs if cutoff < vocab_size)
    starts = (*(int(cutoff) for cutoff in cutoffs), vocab_size)
    if not cutoffs or starts[0] < 1 or (np.diff(starts) <= 0).any():
        raise ValueError(
            f"cutoffs = {tuple(cutoffs)} must rise, from at least 1 to below {vocab_size} tokens"
        )
    return starts


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _nats(table: jax.Array, hidden: jax.Array, targets: jax.Array, dtype: DTypeLike) -> jax.Array:
    return logit_stats(product(hidden, table, dtype), targets).cross_entropy


def _tail_logits(tail: Tail, hidden: jax.Array, dtype: DTypeLike) -> jax.Array:
    down, table = tail
    return product(product(hidden, down, dtype), table, dtype)


def _tail_nats(tail: Tail, hidden: jax.Array, places: jax.Array, dtype: DTypeLike) -> jax.Array:
    return logit_stats(_tail_logits(tail, hidden, dtype), places).cross_entropy
