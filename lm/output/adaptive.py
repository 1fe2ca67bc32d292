"""How does a head spend little on rare words? They wait in clusters, computed only for the tokens
that go there, with vectors smaller than those of frequent words.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.output.base import Head
from lm.output.chunked import chunked
from lm.output.chunking import block_size
from lm.output.frequency import by_frequency
from lm.output.gathered import gathered
from lm.output.logit_stats import statistics
from lm.output.loss_and_grad import total
from lm.output.product import product

_BLOCK = 512  # tokens of a cluster computed at once, at most


class AdaptiveHead(Head):
    """Adaptive softmax (Grave et al. 1609.04309): a head of frequent words and one entry for each
    tail cluster; log p = log p_head(cluster) + log p_cluster(word).

    Cluster i has vectors of size D / divisor^(i+1), which its projection makes of h. In `total` the
    head is computed for all tokens, and each cluster in blocks of its own tokens, as many blocks as
    the batch needs: exact for every batch, and cheap for those of natural text.

    Attributes:
      cutoffs: ranks at which the tail clusters begin; None: about V / 32 and V / 4.
      divisor: how much smaller each cluster's vectors are than those before it.
      counts: of words in the training text, [V]; None: words count as ordered by frequency.
    """

    cutoffs: tuple[int, ...] | None = None
    divisor: int = 4
    counts: Any = None

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

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]: -log p(target)."""
        return self.negative_log_likelihood(hidden, targets, embedding)

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

    def total(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """See `Head.total`."""
        if self.is_initializing():
            return jnp.sum(self.loss(hidden, targets) * weights)
        dtype = self._dtype(hidden)

        def of_head(table, shared, rows, hidden, targets):
            return _nats(table, hidden, targets, dtype)

        def of_tail(tail, shared, rows, hidden, places):
            return _tail_nats(tail, hidden, places, dtype)

        in_chunks = chunked(of_head, self.chunks(hidden.shape[0], self.training_logits))
        value = total(in_chunks, self.head, None, hidden, self._entries(targets), weights)
        for i, tail in enumerate(self.tails):
            member, places = self._places(targets, i)
            block = min(_BLOCK, block_size(len(hidden), 1.0, len(tail[1]), self.token_chunk_size))
            own = jnp.where(member, weights, 0.0)
            value += total(gathered(of_tail, block), tail, None, hidden, places, own)
        return value

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        of_head = jax.nn.log_softmax(product(hidden, self.head, self._dtype(hidden)), axis=-1)
        frequent = self.starts[0]
        parts = [of_head[:, :frequent]]
        for i, tail in enumerate(self.tails):
            own = jax.nn.log_softmax(_tail_logits(tail, hidden, self._dtype(hidden)), axis=-1)
            parts.append(of_head[:, frequent + i : frequent + i + 1] + own)
        return jnp.concatenate(parts, axis=-1)[:, self.ranks]

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a word for every hidden state, [N]; clusters that none went to are not computed."""
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

    def _dtype(self, hidden: jax.Array) -> Any:
        return jnp.dtype(self.dtype or hidden.dtype)

    def _entries(self, targets: jax.Array) -> jax.Array:
        """Which of the head's entries each target is, or stands behind."""
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
            f"cutoffs = {tuple(cutoffs)} must rise, from at least 1 to below the {vocab_size} words"
        )
    return starts


def _draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _nats(table: jax.Array, hidden: jax.Array, targets: jax.Array, dtype: Any) -> jax.Array:
    return statistics(product(hidden, table, dtype), targets).cross_entropy


def _tail_logits(tail: tuple[jax.Array, jax.Array], hidden: jax.Array, dtype: Any) -> jax.Array:
    down, table = tail
    return product(product(hidden, down, dtype), table, dtype)


def _tail_nats(tail, hidden: jax.Array, places: jax.Array, dtype: Any) -> jax.Array:
    return statistics(_tail_logits(tail, hidden, dtype), places).cross_entropy
