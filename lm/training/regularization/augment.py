"""Leaves words of a row out, swaps or hides them, drawn anew at every step: a pure function of the
step's key and the row itself.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.data import Tokenizer
from lm.data.objectives.base import row_keys
from lm.errors import UserError
from lm.model.transformer import Batch

_SPAN = 3  # words that are hidden together


class Words(NamedTuple):
    """Which tokens of a row [L] belong together.

    Attributes:
      word: the number of each token's word; a special token is one of its own.
      text: the number of its text; special tokens stand between texts.
      free: whether it is a word's, and neither special nor padding.
      marked: whether it says itself that it begins a word, by a space before it.
    """

    word: jax.Array
    text: jax.Array
    free: jax.Array
    marked: jax.Array


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Easy data augmentation (1901.11196) without its synonyms, and hidden spans (SpanBERT,
    1907.10529), of whole words.

    Attributes:
      tokenizer: of the rows.
      delete: each word is left out with this probability, but one of every text stays.
      swap: so many are chosen, which trade places at random within their text; a first word that
        no space precedes stays.
      hide: the share of words behind mask tokens, in spans of three that may overlap.
    """

    tokenizer: Tokenizer
    delete: float
    swap: float
    hide: float

    def __post_init__(self):
        """UserError where there is no mask token."""
        if self.hide and self.tokenizer.mask is None:
            raise UserError(
                f"config.regularization.mask_spans = {self.hide} needs a mask token, and "
                f"{self.tokenizer.name} has none; add [MASK] to its added_tokens, or set it to 0"
            )

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch as it is read in this step; its targets and their number stay."""
        if not (self.delete or self.swap or self.hide):
            return batch
        shape = batch.inputs.shape
        arrays = {k: getattr(batch, k) for k in ("inputs", "segments", "token_types")}
        flat = {k: x.reshape(-1, shape[-1]) for k, x in arrays.items() if x is not None}
        if self.delete and batch.target_positions is not None:
            flat["target_positions"] = batch.target_positions
        rows = jax.vmap(self.row)(row_keys(key, flat["inputs"]), flat)
        read: Any = {k: x if k == "target_positions" else x.reshape(shape) for k, x in rows.items()}
        return dataclasses.replace(batch, **read)

    def row(self, key: jax.Array, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Of one row: "inputs", "segments" and, where given, "token_types", "target_positions"."""
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        if self.swap:
            row = self.swapped(keys[0], row)
        if self.delete:
            row = self.shortened(keys[1], row)
        return self.hidden(keys[2], row) if self.hide else row

    def swapped(self, key: jax.Array, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """With words in each other's places."""
        words = self.words(row)
        size = len(words.word)
        draw, order = jax.random.uniform(key, (2, size))
        text = jax.ops.segment_max(words.text, words.word, size)
        # A text's first word may have no space before it, and would stick to another.
        apart = (words.free & words.marked).astype(int)
        chosen = (jax.ops.segment_max(apart, words.word, size) > 0) & (draw < self.swap)
        # In both, the chosen words of each text stand together; here as they are, there as drawn.
        numbers = jnp.arange(size)
        here = jnp.lexsort((numbers, text, chosen))
        there = jnp.lexsort((jnp.where(chosen, order, numbers), text, chosen))
        place = jnp.zeros_like(here).at[there].set(here)
        return row | {"inputs": row["inputs"][jnp.argsort(place[words.word], stable=True)]}

    def shortened(self, key: jax.Array, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """With words left out; those after them move up."""
        words = self.words(row)
        size = len(words.word)
        draw = jnp.where(words.free, jax.random.uniform(key, (size,))[words.word], -1.0)
        most = jax.ops.segment_max(draw, words.text, size)[words.text]
        lost = words.free & (draw < self.delete) & (draw < most)
        kept = (row["segments"] > 0) & ~lost
        order = jnp.argsort(~kept, stable=True)
        real = jnp.arange(size) < jnp.sum(kept)
        fill = {"inputs": self.tokenizer.end, "segments": 0, "token_types": 0}
        moved = {k: jnp.where(real, row[k][order], fill[k]) for k in fill.keys() & row.keys()}
        if "target_positions" in row:
            moved["target_positions"] = (jnp.cumsum(kept) - 1)[row["target_positions"]]
        return moved

    def hidden(self, key: jax.Array, row: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """With mask tokens for words; a word is in one of three spans, each begun by chance."""
        words = self.words(row)
        size = len(words.word)
        begins = jax.random.uniform(key, (size,)) < 1.0 - (1.0 - self.hide) ** (1.0 / _SPAN)
        found = sum(begins[jnp.maximum(words.word - i, 0)] for i in range(_SPAN)) > 0
        mask: Any = self.tokenizer.mask
        return row | {"inputs": jnp.where(words.free & found, mask, row["inputs"])}

    def words(self, row: dict[str, jax.Array]) -> Words:
        """The words of a row."""
        tokens, real = row["inputs"], row["segments"] > 0
        free = jnp.asarray(self.tokenizer.ordinary)[tokens] & real
        after = jnp.pad(free[:-1], (1, 0))
        marked = jnp.asarray(self.tokenizer.word_starts)[tokens]
        begins = marked | ~free | ~after
        return Words(jnp.cumsum(begins) - 1, jnp.cumsum(~free), free, marked)
