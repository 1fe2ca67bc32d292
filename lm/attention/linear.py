"""Linear attention by features: exponential-linear ones, random ones whose mean is the softmax, and
rectified ones with a cosine of the distance.
"""

import math

import jax
import jax.numpy as jnp

from lm.attention.base import LayerContext, Mechanism, random_key
from lm.attention.feature_product import feature_attend
from lm.attention.mask import Mask
from lm.softmax.weighting import promote


class LinearAttention(Mechanism):
    """w_ij = phi(q_i) . phi(k_j) with phi(x) = elu(x) + 1, normalised (2006.16236)."""

    owns_weights = True
    position_embeddings = ()

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        return feature_attend(
            elu_features(query), elu_features(key), value, mask, self.query_chunk_size
        )


class FavorAttention(Mechanism):
    """Random positive features phi with E[phi(q) . phi(k)] = exp(q.k / sqrt(K)) (2009.14794).

    The draw is the same for all heads. An estimate of softmax attention, whose error falls with the
    number of features and grows fast with the scores: `model.qk_norm` keeps them small, and keeps
    the features of long keys from underflowing.

    Attributes:
      random_features: their number M.
      redraw: new features at every step of training, and fixed ones in evaluation; else always
        the same, which are not trained.
    """

    random_features: int = 128
    redraw: bool = False

    owns_weights = True
    position_embeddings = ("rotary",)

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        shape = (self.random_features, query.shape[3])
        rng = random_key(self) if self.redraw else None
        if rng is not None:
            directions = orthogonal_normal(rng, *shape)
        else:
            with jax.ensure_compile_time_eval():
                directions = orthogonal_normal(jax.random.key(0), *shape)
        of_queries = random_exponents(query, directions)
        # A factor per query cancels, and this one keeps the exponential in range.
        of_queries -= jax.lax.stop_gradient(jnp.max(of_queries, axis=-1, keepdims=True))
        # One per key would not cancel, and one for all keys would let later keys be felt.
        of_keys = random_exponents(key, directions)
        return feature_attend(
            jnp.exp(of_queries), jnp.exp(of_keys), value, mask, self.query_chunk_size
        )


class CosformerAttention(Mechanism):
    """w_ij = relu(q_i) . relu(k_j) cos(pi/2 (i - j) / horizon), normalised (2202.08791).

    i and j are the positions of the mask, or else indices; only their difference matters. In
    cross-attention it is that of position i of the text to position j of its source. The cosine is
    a product of features, as cos(a - b) = cos a cos b + sin a sin b. Rows whose weights sum to less
    than 1e-6 are divided by that instead.

    Attributes:
      horizon: the distance at which weights reach zero; no distance may be larger.
    """

    horizon: int = 1024

    owns_weights = True
    position_embeddings = ()

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, layer: LayerContext
    ) -> jax.Array:
        """See `Mechanism`."""
        positions, key_positions = mask.positions, mask.key_positions
        if positions is None:
            positions = (0 if mask.offset is None else mask.offset) + jnp.arange(query.shape[1])
            key_positions = jnp.arange(key.shape[1])
        elif key_positions is None:
            key_positions = positions
        of_queries = cosine_features(query, positions, self.horizon)
        of_keys = cosine_features(key, key_positions, self.horizon)
        return feature_attend(of_queries, of_keys, value, mask, self.query_chunk_size, floor=1e-6)


def elu_features(x: jax.Array) -> jax.Array:
    """elu(x) + 1 in float32: x + 1 above 0, exp(x) below; positive."""
    x = promote(x)
    return jnp.where(x > 0.0, x + 1.0, jnp.exp(jnp.minimum(x, 0.0)))


def cosine_features(x: jax.Array, positions: jax.Array, horizon: int) -> jax.Array:
    """[B, L, H, K] at positions [B, L] or [L] to [B, L, H, 2 K]: relu(x) cos a and relu(x) sin a,
    in float32.
    """
    angles = (math.pi / 2 / horizon * positions.astype(jnp.float32))[..., None, None]
    x = jax.nn.relu(promote(x))
    return jnp.concatenate([x * jnp.cos(angles), x * jnp.sin(angles)], axis=-1)


def random_exponents(x: jax.Array, directions: jax.Array) -> jax.Array:
    """w_m . y - |y|^2 / 2 - log(M) / 2 with y = x / K^(1/4), in float32.

    For w from a standard normal, the products exp(exponents of q) . exp(exponents of k) have the
    mean exp(q.k / sqrt(K)).

    Args:
      x: [B, L, H, K].
      directions: w, [M, K].

    Returns:
      [B, L, H, M]; at most |w_m|^2 / 2, which is what keeps exp(it) finite for K up to 128 or so.
    """
    y = promote(x) * x.shape[-1] ** -0.25
    exponents = jnp.einsum("blhk,mk->blhm", y, directions)
    return exponents - jnp.sum(y * y, axis=-1, keepdims=True) / 2 - math.log(len(directions)) / 2


def orthogonal_normal(key: jax.Array, rows: int, size: int) -> jax.Array:
    """Standard normal vectors [rows, size], those of each run of `size` rows at right angles.

    Each is normal by itself, so that means stay what they are, and estimates vary less.
    """
    shape = (-(-rows // size), size, size)
    bases, upper = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 0), shape))
    # Without the signs the bases are not uniform: each begins with a column of a fixed sign.
    bases *= jnp.sign(jnp.diagonal(upper, axis1=1, axis2=2))[:, None, :]
    directions = bases.swapaxes(1, 2).reshape(-1, size)[:rows]
    lengths = jnp.linalg.norm(jax.random.normal(jax.random.fold_in(key, 1), (rows, size)), axis=1)
    return directions * lengths[:, None]
