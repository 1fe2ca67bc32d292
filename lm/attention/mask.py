"""Masks of attention as structure (causal, window, documents, padding), from which any block is
computed where it is needed; the dense [Q, S] array is never stored whole.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# The segment of keys that queries of every segment see.
ALL_SEGMENTS = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The structure of visibility between Q queries and S keys; all conditions must hold.

    Attributes:
      causal: query i sees keys up to its own position.
      window: a query sees only keys nearer than `window` positions (itself counts as the first);
        None: all.
      segments: [B, Q] integers; a query sees only keys of its own segment (packed documents), and
        those of segment `ALL_SEGMENTS`.
      key_segments: [B, S]; None: the queries' own `segments` (then Q = S).
      padding: [B, S] boolean, True at real keys.
      offset: position of the first query among the keys (decoding with a cache); None: 0.
      prefix: [B, S] boolean; these keys are seen also by queries before them (prefix language
        models); other conditions hold for them as for others.
      positions: [B, Q], positions of the queries within their documents, for what goes by distance
        (`relative_positions`), not for what is visible; None: their indices, which differ alike
        wherever a document lies in one piece.
      key_positions: [B, S], likewise; None: the queries' own `positions` (then Q = S).
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    padding: jax.Array | None = None
    offset: jax.Array | int | None = None
    prefix: jax.Array | None = None
    positions: jax.Array | None = None
    key_positions: jax.Array | None = None

    def visible(
        self, start: jax.Array | int, queries: int, first_key: jax.Array | int, keys: int
    ) -> jax.Array | None:
        """Boolean [B or 1, 1, queries, keys] for the block that begins at `start`, `first_key`.

        None where everything is visible.
        """
        conditions = []
        if self.causal or self.window is not None:
            distance = self.distance(start, queries, first_key, keys)
            if self.causal:
                earlier = distance >= 0
                if self.prefix is not None:
                    given = jax.lax.dynamic_slice_in_dim(self.prefix, first_key, keys, axis=1)
                    earlier |= given[:, None, None, :]
                conditions.append(earlier)
            if self.window is not None:
                conditions.append(jnp.abs(distance) < self.window)
        if self.segments is not None:
            key_segments = self.segments if self.key_segments is None else self.key_segments
            of_queries = jax.lax.dynamic_slice_in_dim(self.segments, start, queries, axis=1)
            of_keys = jax.lax.dynamic_slice_in_dim(key_segments, first_key, keys, axis=1)
            of_keys = of_keys[:, None, None, :]
            same = of_queries[:, None, :, None] == of_keys
            conditions.append(
                same if self.key_segments is None else same | (of_keys == ALL_SEGMENTS)
            )
        if self.padding is not None:
            padding = jax.lax.dynamic_slice_in_dim(self.padding, first_key, keys, axis=1)
            conditions.append(padding[:, None, None, :])
        if not conditions:
            return None
        return functools.reduce(jnp.logical_and, conditions)

    def distance(
        self, start: jax.Array | int, queries: int, first_key: jax.Array | int, keys: int
    ) -> jax.Array:
        """Index of the query minus index of the key, [1, 1, queries, keys]."""
        offset = 0 if self.offset is None else self.offset
        query_positions = offset + start + jnp.arange(queries)
        return query_positions[None, None, :, None] - (first_key + jnp.arange(keys))

    def relative_positions(
        self, start: jax.Array | int, queries: int, first_key: jax.Array | int, keys: int
    ) -> jax.Array:
        """Position of the query minus position of the key, [B or 1, 1, queries, keys]."""
        if self.positions is None:
            return self.distance(start, queries, first_key, keys)
        key_positions = self.positions if self.key_positions is None else self.key_positions
        of_queries = jax.lax.dynamic_slice_in_dim(self.positions, start, queries, axis=1)
        of_keys = jax.lax.dynamic_slice_in_dim(key_positions, first_key, keys, axis=1)
        return of_queries[:, None, :, None] - of_keys[:, None, None, :]

    def padded_queries(self, queries: int) -> "Mask":
        """The same mask for more queries, the new ones of segment 0 and at position 0."""
        padded = {}
        for name in ("segments", "positions"):
            of_queries, of_keys = getattr(self, name), getattr(self, f"key_{name}")
            if of_queries is not None:
                extra = queries - of_queries.shape[1]
                padded[name] = jnp.pad(of_queries, ((0, 0), (0, extra)))
                padded[f"key_{name}"] = of_queries if of_keys is None else of_keys
        return dataclasses.replace(self, **padded)
