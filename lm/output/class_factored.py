"""The class-factored softmax: a token's class first, then the token within its class."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.output.base import Head, take_targets
from lm.output.frequency import by_frequency


class ClassFactoredHead(Head):
    """log p = log p(class of the token) + log p(token in its class) (Goodman 2001).

    Classes are runs of tokens of neighbouring frequency, of equal size (the last may be shorter). A
    position costs C + V / C logits, not V. With a class for each token it is the softmax over
    classes.

    Attributes:
      classes: C; None: the square root of V, rounded up.
      counts: of tokens in the training text, [V]; None: tokens are ordered by frequency.
    """

    classes: int | None = None
    counts: Sequence[int] | np.ndarray | None = None

    needs_counts = True

    @property
    def size(self) -> int:
        """Tokens of a class."""
        return -(-self.vocab_size // (self.classes or math.isqrt(self.vocab_size - 1) + 1))

    @property
    def logits_per_token(self) -> int:
        """The vectors of a target's class are gathered for it."""
        return self.size * self.d_model + -(-self.vocab_size // self.size)

    def members(self) -> np.ndarray:
        """Tokens of each class, [C, size], by rank; V where there is none."""
        order, _ = by_frequency(self.counts, self.vocab_size)
        padding = -len(order) % self.size
        return np.pad(order, (0, padding), constant_values=self.vocab_size).reshape(-1, self.size)

    @nn.compact
    def tables(self, embedding: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Vectors of the classes, [C, D], and of the tokens, [V, D]."""
        table = self.table(embedding)  # first, so that it begins as that of other heads
        shape = (len(self.members()), self.d_model)
        return self.param("class_table", self.table_init, shape, self.param_dtype), table

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        classes, table = self.tables(embedding)
        rank = jnp.asarray(by_frequency(self.counts, self.vocab_size)[1])[targets]
        chosen = rank // self.size
        class_log_probs = jax.nn.log_softmax(self.project(hidden, classes), axis=-1)
        within = jax.nn.log_softmax(self._within(hidden, table, chosen), axis=-1)
        return -(take_targets(class_log_probs, chosen) + take_targets(within, rank % self.size))

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        classes, table = self.tables(embedding)
        members, ranks = self.members(), by_frequency(self.counts, self.vocab_size)[1]
        logits = self.project(hidden, table)[:, np.minimum(members, self.vocab_size - 1)]
        logits = jnp.where(members < self.vocab_size, logits, -jnp.inf)
        class_log_probs = jax.nn.log_softmax(self.project(hidden, classes), axis=-1)
        both = class_log_probs[..., None] + jax.nn.log_softmax(logits, axis=-1)
        return both.reshape(hidden.shape[0], -1)[:, ranks]

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a token for every hidden state, [N]: its class, then one of the class's tokens."""
        classes, table = self.tables(embedding)
        first, second = jax.random.split(key)
        chosen = jax.random.categorical(first, self.project(hidden, classes), axis=-1)
        place = jax.random.categorical(second, self._within(hidden, table, chosen), axis=-1)
        return jnp.asarray(self.members())[chosen, place]

    def _within(self, hidden: jax.Array, table: jax.Array, chosen: jax.Array) -> jax.Array:
        """Logits of the tokens of each position's class, [N, size]."""
        members = jnp.asarray(self.members())[chosen]
        logits = self.project_each(hidden, table[jnp.minimum(members, self.vocab_size - 1)])
        return jnp.where(members < self.vocab_size, logits, -jnp.inf)
