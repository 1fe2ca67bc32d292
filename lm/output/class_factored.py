"""What if a word were drawn in two steps? First its class, then the word among its class."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.output.base import Head
from lm.output.frequency import by_frequency


class ClassFactoredHead(Head):
    """log p = log p(class of the word) + log p(word in its class) (Goodman 2001).

    Classes are runs of words of neighbouring frequency, of equal size (the last may be shorter). A
    token costs C + V / C logits, not V. With a class for each word it is the softmax over classes.

    Attributes:
      classes: C; None: the square root of V, rounded up.
      counts: of words in the training text, [V]; None: words count as ordered by frequency.
    """

    classes: int | None = None
    counts: Any = None

    needs_counts = True

    @property
    def size(self) -> int:
        """Words of a class."""
        return -(-self.vocab_size // (self.classes or math.isqrt(self.vocab_size - 1) + 1))

    @property
    def logits_per_token(self) -> int:
        """The vectors of a token's class are gathered for it."""
        return self.size * self.d_model + -(-self.vocab_size // self.size)

    def members(self) -> np.ndarray:
        """Words of each class, [C, size], by rank; V where there is none."""
        order, _ = by_frequency(self.counts, self.vocab_size)
        padding = -len(order) % self.size
        return np.pad(order, (0, padding), constant_values=self.vocab_size).reshape(-1, self.size)

    @nn.compact
    def tables(self, embedding: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Vectors of the classes, [C, D], and of the words, [V, D]."""
        words = self.table(embedding)  # first, so that it begins as that of other heads
        shape = (len(self.members()), self.d_model)
        return self.param("class_table", self.table_init, shape, self.param_dtype), words

    def loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Training loss per token in nats, [N]: -log p(target)."""
        return self.negative_log_likelihood(hidden, targets, embedding)

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        classes, words = self.tables(embedding)
        rank = jnp.asarray(by_frequency(self.counts, self.vocab_size)[1])[targets]
        chosen = rank // self.size
        of_classes = jax.nn.log_softmax(self.logits(hidden, classes), axis=-1)
        of_words = jax.nn.log_softmax(self._within(hidden, words, chosen), axis=-1)
        return -(_pick(of_classes, chosen) + _pick(of_words, rank % self.size))

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]."""
        classes, words = self.tables(embedding)
        members, ranks = self.members(), by_frequency(self.counts, self.vocab_size)[1]
        logits = self.logits(hidden, words)[:, np.minimum(members, self.vocab_size - 1)]
        logits = jnp.where(members < self.vocab_size, logits, -jnp.inf)
        of_classes = jax.nn.log_softmax(self.logits(hidden, classes), axis=-1)
        both = of_classes[..., None] + jax.nn.log_softmax(logits, axis=-1)
        return both.reshape(len(hidden), -1)[:, ranks]

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a word for every hidden state, [N]: its class, then one of the class's words."""
        classes, words = self.tables(embedding)
        first, second = jax.random.split(key)
        chosen = jax.random.categorical(first, self.logits(hidden, classes), axis=-1)
        place = jax.random.categorical(second, self._within(hidden, words, chosen), axis=-1)
        return jnp.asarray(self.members())[chosen, place]

    def _within(self, hidden: jax.Array, words: jax.Array, chosen: jax.Array) -> jax.Array:
        """Logits of the words of each token's class, [N, size]."""
        members = jnp.asarray(self.members())[chosen]
        dtype = jnp.dtype(self.dtype or hidden.dtype)
        vectors = words[jnp.minimum(members, self.vocab_size - 1)]
        logits = jnp.einsum(
            "nd,nsd->ns",
            hidden.astype(dtype),
            vectors.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        return jnp.where(members < self.vocab_size, logits, -jnp.inf)


def _pick(x: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, places[:, None], axis=-1)[:, 0]
