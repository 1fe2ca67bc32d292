"""Masked language modelling: hidden tokens are predicted from both sides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.objectives.base import MaskRate, Objective, row_keys
from lm.data.objectives.causal import opens, positions_within
from lm.errors import UserError
from lm.model.batch import Batch

_HIDDEN, _REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stay as they are


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Masked language modelling by an encoder (BERT, 1810.04805), drawn anew at every step.

    Each token is chosen with probability `mask_rate`. Of the chosen, 80 % become the mask token,
    10 % a random word and 10 % stay; their originals are the targets. Special tokens and padding
    are never chosen, and no random word is special. Nats are per chosen token, so they compare
    with those of masked models with the same tokenizer and rate, and not with bits per byte.

    Attributes:
      mask_rate: above 0, below 1.
      whole_word: the tokens of a word are chosen together; `tokenizer.word_starts` says where words
        begin. Each of them is then hidden, replaced or kept by itself.
    """

    mask_rate: MaskRate = 0.15
    whole_word: bool = False

    architecture = "encoder"
    accuracy = True

    @classmethod
    def share(cls, options: Mapping[str, Any]) -> float:
        """See `Objective`: the rate."""
        return options.get("mask_rate", cls.mask_rate)

    def __post_init__(self):
        """UserError where there is no mask token."""
        if self.tokenizer.mask is None:
            raise UserError(
                f"objective masked hides words behind a mask token, and {self.tokenizer.name} has "
                "none; add [MASK] to its added_tokens, or use bytes, bpe, wordpiece or unigram"
            )

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`: [B, L], with weight one on the chosen tokens."""
        tokens, segments = self.opened(rows["tokens"][:, :-1]), rows["segments"]
        ordinary = jnp.asarray(self.tokenizer.ordinary)[tokens] & (segments > 0)
        inputs, chosen = jax.vmap(self._hide)(
            row_keys(key, rows["tokens"]), tokens, ordinary, self._words(tokens, segments)
        )
        return Batch(
            inputs=inputs,
            targets=tokens,
            weights=chosen.astype(jnp.float32),
            segments=segments,
            positions=positions_within(segments),
        )

    def _words(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        """Which of its row's words each token belongs to, [B, L]."""
        if not self.whole_word:
            return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        starts = jnp.asarray(self.tokenizer.word_starts)[tokens] | opens(segments)
        return jnp.cumsum(starts, axis=1) - starts[:, :1]

    def _hide(
        self, key: jax.Array, tokens: jax.Array, ordinary: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of one row [L]: what is read, and which tokens are to be predicted."""
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        chosen = ordinary & (jax.random.uniform(keys[0], tokens.shape)[words] < self.mask_rate)
        fate = jax.random.uniform(keys[1], tokens.shape)
        candidates = np.flatnonzero(self.tokenizer.ordinary).astype(np.int32)
        replaced = jax.random.choice(keys[2], candidates, tokens.shape)
        read = jnp.where(fate < _HIDDEN + _REPLACED, replaced, tokens)
        mask: Any = self.tokenizer.mask
        read = jnp.where(fate < _HIDDEN, mask, read)
        return jnp.where(chosen, read, tokens), chosen
