"""Samples the next token with temperature, top-k, top-p and min-p."""

import collections
import dataclasses
import math
import zlib
from collections.abc import Hashable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lm.devices.cpu import fusion_barrier
from lm.errors import UserError

_FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_TINY = float(np.finfo(np.float32).tiny)
ROUNDING = 1e-6  # error of sums of float32 probabilities


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Options of sampling; see `sample`.

    Raises:
      UserError: for a number that is out of range, infinite or NaN.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        """Checks the numbers."""
        for name, largest in (("temperature", _FLOAT32_MAX), ("top_p", 1.0), ("min_p", 1.0)):
            if not 0.0 <= getattr(self, name) <= largest:
                raise UserError(
                    f"{name} = {getattr(self, name)} must be a number from 0 to {largest:.3g}"
                )
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise UserError(
                f"top_k = {self.top_k} must be a whole number, at least 0, which keeps all tokens"
            )

    @property
    def unmodified(self) -> bool:
        """Whether tokens come from the model's own distribution."""
        return self == SamplingParams()


def sample(
    log_probs: jax.Array,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """Samples one token from log-probabilities [V]. The likeliest is always kept.

    The filters apply in the order of transformers: temperature, top_k, top_p, min_p; top_p uses
    the probabilities among the tokens that top_k keeps. Of equally likely tokens the first are
    kept, so that exactly k are, and no more than p asks for. NaN among the log-probabilities
    gives -1.

    Args:
      log_probs: [V].
      key: the random key of this token.
      temperature: divides the log-probabilities; 0, or what float32 rounds to 0, takes the
        likeliest token.
      top_k: keeps the k likeliest tokens; 0: all.
      top_p: keeps the likeliest tokens whose probabilities first sum to p (1904.09751); 1: all.
      min_p: keeps tokens at least min_p times as likely as the likeliest (2407.01082).
    """
    most = jnp.max(log_probs)
    if temperature < FLOAT32_TINY:
        return jnp.where(jnp.isnan(most), -1, jnp.argmax(log_probs))
    logits = filtered_logits(log_probs, temperature, top_k, top_p, min_p)
    return jnp.where(jnp.isnan(most), -1, jax.random.categorical(key, logits))


def filtered_logits(
    log_probs: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> jax.Array:
    """The distribution that `sample` draws from: its log-probabilities [V] up to a constant, 0 for
    the likeliest token and -inf for those that are never drawn; NaN where `log_probs` has NaN.

    Args:
      log_probs, temperature, top_k, top_p, min_p: see `sample`.
    """
    most = jnp.max(log_probs)
    if temperature < FLOAT32_TINY:
        likeliest = jnp.arange(log_probs.size) == jnp.argmax(log_probs)
        return jnp.where(likeliest, most - most, -jnp.inf)
    # What is divided is 0 for the likeliest, and never infinite.
    logits = jnp.where(log_probs == -jnp.inf, -jnp.inf, (log_probs - most) / temperature)
    kept = jnp.ones(logits.shape, bool)
    if 0 < top_k < logits.size:
        # Without the barrier, XLA's CPU backend sorts all of them.
        likeliest = fusion_barrier(jax.lax.top_k(logits, top_k)[0])
        kept &= keep_first(logits, likeliest[-1], top_k)
    if top_p < 1.0:
        order = jnp.sort(jnp.where(kept, logits, -jnp.inf), descending=True)
        sums = jnp.cumsum(jax.nn.softmax(order))
        count = 1 + jnp.sum(sums[:-1] < top_p - ROUNDING)
        kept &= keep_first(logits, order[count - 1], count)
    if min_p > 0.0:
        kept &= logits >= math.log(min_p) - ROUNDING
    return jnp.where(kept, logits, -jnp.inf)


def keep_first(logits: jax.Array, least: jax.Array, count: jax.Array | int) -> jax.Array:
    """Which are the `count` largest of logits [V], the last of which is `least`."""
    above, equal = logits > least, logits == least
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))


def request_keys(
    seed: int, requests: Sequence[Sequence[np.ndarray]], repeats: Sequence[int] | None = None
) -> jax.Array:
    """A random key for each request, [B]: a function of the seed, of the tokens of the request, and
    of its repeat, whatever the options and the other requests are.

    Args:
      seed: shared by all requests.
      requests: B times the arrays of token ids that a continuation depends on.
      repeats: the number of equal requests before each; None: counted among `requests`.
    """
    contents = [request_bytes(each) for each in requests]
    hashes = np.array([zlib.crc32(each) for each in contents], np.uint32)
    numbers = np.array(count_repeats(contents) if repeats is None else repeats, np.uint32)
    return jax.vmap(request_key, (None, 0, 0))(seed, hashes, numbers)


def request_key(seed: ArrayLike, crc: ArrayLike, repeat: ArrayLike) -> jax.Array:
    """The random key of a request: of the seed, the CRC-32 of `request_bytes`, and the repeat."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc), repeat)


def request_bytes(request: Sequence[np.ndarray]) -> bytes:
    """The arrays of token ids that a continuation depends on, as bytes: equal for equal ones."""
    return b"|".join(np.asarray(ids, np.int32).tobytes() for ids in request)


def count_repeats(requests: Iterable[Hashable]) -> list[int]:
    """How many equal requests come before each."""
    seen: collections.Counter[Hashable] = collections.Counter()
    numbers = []
    for request in requests:
        numbers.append(seen[request])
        seen[request] += 1
    return numbers
