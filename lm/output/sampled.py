"""Heads that train with a sample of the vocabulary: sampled softmax, noise-contrastive estimation,
and a softmax that is sampled on most steps.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.output.base import take_targets
from lm.output.chunked import chunked
from lm.output.loss_and_grad import loss_sum
from lm.output.pointwise import LogitsHead
from lm.output.product import product

DISTRIBUTIONS = ("log_uniform", "unigram")


class SampledHead(LogitsHead):
    """Sampled softmax: lse over the target and S other tokens (Jean et al. 1412.2007).

    loss = log(e^z_y + sum_{j in S, j != y} e^(z_j - log E_j)) - z_y, E_j the expected count of
    token j in the sample. The sum inside is right on average, so the loss tends to the softmax's as
    S grows, and with all tokens sampled it is the softmax's. Likelihoods are exact. Without the rng
    "softmax" the loss is the exact one.

    All positions of a step share the sample. It is systematic: S equidistant points with a common
    random start, on a line where token j has length E_j = min(1, c q_j); tokens are distinct, and
    expected counts exact.

    Attributes:
      samples: S; at most V are used.
      distribution: q, "log_uniform" (about 1 / rank) or "unigram" (counts + 1).
      counts: of tokens in the training text, [V]; None: tokens are ordered by frequency.
    """

    samples: int = 1024
    distribution: str = "log_uniform"
    counts: Sequence[int] | np.ndarray | None = None

    needs_counts = True
    random = True

    @property
    def training_logits(self) -> int:
        """Those of the sample."""
        return min(self.samples, self.vocab_size)

    def loss(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        key: jax.Array | None = None,
        index: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss per token in nats, [N]; `key` as of `Head.loss`."""
        key = self.random_key() if key is None else key
        if key is None or self.is_initializing():
            return self.exact_loss(hidden, targets, embedding)
        edges, log_expected = self._line()
        sample = systematic_sample(key, edges, self.training_logits)
        target_logits, others = self.sampled_logits(hidden, targets, sample, embedding)
        return self.sampled_loss(targets, target_logits, sample, others, jnp.asarray(log_expected))

    def _line(self) -> tuple[np.ndarray, np.ndarray]:
        counts = None if self.counts is None else np.asarray(self.counts, np.int64).tobytes()
        return sampling_line(self.vocab_size, self.training_logits, self.distribution, counts)

    def sampled_logits(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        sample: jax.Array,
        embedding: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of the targets, [N], and of a sample of tokens, [N, S]."""
        params = self.variables.get("params", {})
        table = params["table"] if embedding is None else embedding
        # One gather, so that its gradient is one table of zeros and not two.
        vectors = table[jnp.concatenate([targets, sample])]
        target_vectors, sample_vectors = vectors[: len(targets)], vectors[len(targets) :]
        others = product(hidden, sample_vectors, jnp.dtype(self.dtype or hidden.dtype))
        wide = others.dtype
        own = jnp.einsum("nd,nd->n", hidden.astype(wide), target_vectors.astype(wide))
        if self.bias:
            own, others = own + params["bias"][targets], others + params["bias"][sample]
        return own, others

    def sampled_loss(
        self,
        targets: jax.Array,
        target_logits: jax.Array,
        sample: jax.Array,
        others: jax.Array,
        log_expected: jax.Array,
    ) -> jax.Array:
        """The loss [N] of targets' logits [N] and the sample's [N, S]."""
        others = jnp.where(sample == targets[:, None], -1e30, others - log_expected[sample])
        return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1) - target_logits)

    def exact_loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """What `loss` is with all tokens in the sample."""
        return self.negative_log_likelihood(hidden, targets, embedding)


class NoiseContrastiveHead(SampledHead):
    """Logistic regression of text against noise (Gutmann, Hyvarinen 2010; Mnih, Teh 2012).

    loss = softplus(-(z_y - log E_y)) + sum_{j in S} softplus(z_j - log E_j), with E_j = S q_j (at
    most 1) the expected count of token j in the noise. At its best e^z is the probability itself,
    with a sum near one for every context; z here is h W' + b - log V, so that training starts near
    that. Likelihoods are normalised exactly.
    """

    @nn.compact
    def raw_logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V]."""
        z = self.project(hidden, self.table(embedding))
        return self.add_bias(z - np.log(self.vocab_size))

    def sampled_loss(
        self,
        targets: jax.Array,
        target_logits: jax.Array,
        sample: jax.Array,
        others: jax.Array,
        log_expected: jax.Array,
    ) -> jax.Array:
        """The loss [N] of targets' logits [N] and the sample's [N, S]."""
        shift = np.log(self.vocab_size)
        noise = jax.nn.softplus(others - shift - log_expected[sample])
        text = jax.nn.softplus(log_expected[targets] + shift - target_logits)
        return text + jnp.sum(noise, axis=-1)

    def exact_loss(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """The mean of `loss` over samples."""
        _, log_expected = self._line()
        z = self.logits(hidden, embedding) - jnp.asarray(log_expected)
        noise = jnp.sum(np.exp(log_expected) * jax.nn.softplus(z), axis=-1)
        return jax.nn.softplus(-take_targets(z, targets)) + noise


class DynamicHead(SampledHead):
    """Sampled softmax on most steps, the full softmax on every k-th.

    Attributes:
      every: k; 1 is the softmax head.
      double_every: steps after which k and the sample double, three times at most; 0: never.
      The others are those of `SampledHead`.
    """

    every: int = 8
    double_every: int = 0

    def loss_sum(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """See `Head.loss_sum`; step s is full if k divides s + 1, and where no step is given."""
        key = self.random_key()
        if key is None or step is None or self.is_initializing():
            return super().loss_sum(hidden, targets, weights, embedding)
        doublings = 3 if self.double_every else 0
        doubled = jnp.minimum(step // max(self.double_every, 1), doublings)
        full = (step + 1) % (self.every * 2**doubled) == 0
        branches = [self._branch(None, self.samples)]
        branches += [self._branch(key, self.samples * 2**i) for i in range(doublings + 1)]
        arguments = (self._params(embedding), hidden, targets, weights)
        return jax.lax.switch(jnp.where(full, 0, 1 + doubled), branches, *arguments)

    @nn.nowrap
    def _branch(self, key: jax.Array | None, samples: int) -> Callable[..., jax.Array]:
        """The weighted sum as a pure function of parameters, hidden, targets and weights."""
        head = self.clone(parent=None, samples=samples)

        def branch(params, hidden, targets, weights):
            per_token = head.logits_per_token if key is None else head.training_logits
            in_chunks = chunked(head._pure_loss(), self.chunks(hidden.shape[0], per_token))
            return loss_sum(in_chunks, params, key, hidden, targets, weights)

        return branch


def systematic_sample(key: jax.Array, edges: np.ndarray, samples: int) -> jax.Array:
    """Draws tokens, [S]: one for each of S equidistant points on the line with these edges."""
    unit = int(edges[-1]) // samples
    start = jax.random.randint(key, (), 0, unit)
    points = start + unit * jnp.arange(samples, dtype=jnp.int32)
    return jnp.searchsorted(jnp.asarray(edges), points, side="right").astype(jnp.int32)


@functools.lru_cache(maxsize=8)
def sampling_line(
    vocab_size: int, samples: int, distribution: str, counts: bytes | None
) -> tuple[np.ndarray, np.ndarray]:
    """Where each token ends on the line of `systematic_sample`, and log E of each token.

    In whole numbers, so that float32 blurs no rare token's share of a long line.

    Returns:
      int32 [V] and float32 [V].
    """
    frequency = np.arange(vocab_size, 0, -1) if counts is None else np.frombuffer(counts, np.int64)
    if distribution == "unigram":
        shares = (frequency + 1.0) / np.sum(frequency + 1.0)
    elif distribution == "log_uniform":
        ranks = np.argsort(np.argsort(-frequency, kind="stable"))
        shares = np.log1p(1.0 / (ranks + 1.0)) / np.log(vocab_size + 1.0)
    else:
        raise ValueError(f"distribution {distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
    expected = _capped(shares, samples)
    unit = 1 << (31 - (samples + 1).bit_length())
    edges = np.rint(np.cumsum(expected) * unit).astype(np.int64)
    edges[-1] = samples * unit
    with np.errstate(divide="ignore"):
        log_expected = np.log(np.diff(edges, prepend=0) / unit)
    return edges.astype(np.int32), log_expected.astype(np.float32)


def _capped(shares: np.ndarray, samples: int) -> np.ndarray:
    """min(1, c shares), with the c that makes it sum to the number of samples."""
    if samples == len(shares):
        return np.ones(len(shares))
    order = np.argsort(-shares, kind="stable")
    descending = shares[order]
    rest = np.cumsum(descending[::-1])[::-1]
    scale = (samples - np.arange(samples)) / rest[:samples]
    certain = int(np.argmax(np.append(scale * descending[:samples] <= 1.0, True)))
    expected = np.ones(len(shares))
    if certain < samples:
        expected[order[certain:]] = descending[certain:] * scale[certain]
    return expected
