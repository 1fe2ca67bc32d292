"""Cuts the scores of attention into tiles of keys by queries, and says which of them a mask leaves
empty, so that a kernel does not visit these.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention.mask import ALL_SEGMENTS, Mask

_HIDDEN = -2  # the segment of keys that nothing sees


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles [key_size, query_size] of the scores of Q queries over S keys.

    Attributes:
      queries, keys: Q and S, before they are padded to whole tiles.
      query_size, key_size: of a tile.
      causal, window: as in `Mask`.
      segmented: whether queries and keys have segments.
    """

    queries: int
    keys: int
    query_size: int
    key_size: int
    causal: bool = False
    window: int | None = None
    segmented: bool = False

    @property
    def query_blocks(self) -> int:
        """How many tiles the queries fill."""
        return -(-self.queries // self.query_size)

    @property
    def key_blocks(self) -> int:
        """How many tiles the keys fill."""
        return -(-self.keys // self.key_size)

    def visible(
        self,
        query_block: jax.Array,
        key_block: jax.Array,
        query_segments: jax.Array | None = None,
        key_segments: jax.Array | None = None,
    ) -> jax.Array:
        """Boolean [key_size, query_size] of one tile; segments are [1, query_size], [key_size, 1].

        Queries behind the last, which fill up a tile, may see what they like.
        """
        shape = self.key_size, self.query_size
        key = key_block * self.key_size + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        found = None
        if self.causal or self.window is not None:
            query = query_block * self.query_size + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
            distance = query - key
            if self.causal:
                found = distance >= 0
            if self.window is not None:
                near = distance < self.window
                found = near if found is None else found & near
                if not self.causal:
                    found &= distance > -self.window
        if query_segments is not None and key_segments is not None:
            same = (query_segments == key_segments) | (key_segments == ALL_SEGMENTS)
            found = same if found is None else found & same
        elif self.keys % self.key_size and not (self.causal and self.keys >= self.queries):
            real = key < self.keys
            found = real if found is None else found & real
        return jnp.ones(shape, bool) if found is None else found

    def needed(self, segments: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """Boolean [B or 1, query_blocks, key_blocks]: False where all of a tile is hidden."""
        found = jnp.asarray(self._structure())[None]
        if segments is None:
            return found
        of_queries, of_keys = (
            x.reshape(x.shape[0], -1, size)
            for x, size in zip(segments, (self.query_size, self.key_size), strict=True)
        )
        shared = jnp.any(of_keys == ALL_SEGMENTS, axis=2)[:, None, :]
        low, high = of_queries.min(2)[:, :, None], of_queries.max(2)[:, :, None]
        # A hidden key lies below all queries: it may only make the range of its tile wider.
        meets = (of_keys.max(2)[:, None, :] >= low) & (of_keys.min(2)[:, None, :] <= high)
        return found & (meets | shared)

    def _structure(self) -> np.ndarray:
        """The tiles that the causal mask and the window leave, whatever the segments."""
        first_query = np.arange(self.query_blocks)[:, None] * self.query_size
        first_key = np.arange(self.key_blocks)[None, :] * self.key_size
        last_query = first_query + self.query_size - 1
        last_key = np.minimum(first_key + self.key_size, self.keys) - 1
        found = np.ones((self.query_blocks, self.key_blocks), bool)
        if self.causal:
            found &= first_key <= last_query
        if self.window is not None:
            found &= first_query - last_key < self.window
            if not self.causal:
                found &= first_key - last_query < self.window
        return found

    def row_lengths(self) -> np.ndarray:
        """How many keys each query sees, [Q], at least 1, where there are no segments."""
        query, back = np.arange(self.queries), self.window or max(self.queries, self.keys)
        last = query if self.causal else query + back - 1
        first = np.maximum(query - back + 1, 0)
        return np.maximum(np.minimum(last, self.keys - 1) - first + 1, 1)

    def steps(self, of_keys: bool) -> int:
        """The most tiles between the first and the last that are needed, of a block of queries, or
        of keys.
        """
        found = self._structure()
        first, last = _first_and_last(found.T if of_keys else found, np)
        return max(1, int(np.max(last - first + 1)))


def bounds(needed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the last True along the last axis; 0 and -1 where there is none."""
    return _first_and_last(needed, jnp)


def _first_and_last(needed, numpy):
    """`bounds`, by numpy or jax.numpy."""
    count, found = needed.shape[-1], needed.any(-1)
    first = numpy.where(found, numpy.argmax(needed, -1), 0)
    last = numpy.where(found, count - 1 - numpy.argmax(needed[..., ::-1], -1), -1)
    return first.astype(numpy.int32), last.astype(numpy.int32)


def padded_segments(mask: Mask, tiles: Tiles) -> tuple[jax.Array, jax.Array] | None:
    """Segments of queries [B or 1, Q'] and of keys [B or 1, S'], which fill whole tiles; padding
    and keys behind the last are of a segment that nothing sees. None where all are visible.
    """
    if not tiles.segmented:
        return None
    of_queries = mask.segments
    of_keys = mask.segments if mask.key_segments is None else mask.key_segments
    if of_queries is None or of_keys is None:
        of_queries = jnp.zeros((1, tiles.queries), jnp.int32)
        of_keys = jnp.zeros((1, tiles.keys), jnp.int32)
    if mask.padding is not None:
        of_keys = jnp.where(mask.padding, of_keys, _HIDDEN)
    more = tiles.query_blocks * tiles.query_size - tiles.queries
    more_keys = tiles.key_blocks * tiles.key_size - tiles.keys
    of_queries = jnp.pad(of_queries.astype(jnp.int32), ((0, 0), (0, more)), mode="edge")
    of_keys = jnp.pad(of_keys.astype(jnp.int32), ((0, 0), (0, more_keys)), constant_values=_HIDDEN)
    return of_queries, of_keys
