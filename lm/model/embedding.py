"""How do words become the first hidden states? Their vectors, with those of their places and types
added, normalised and widened where the model asks for it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.positions import sinusoids
from lm.devices.cpu import dense_product
from lm.model.norms import NORMS


class Embedding(nn.Module):
    """dropout(norm(c word + position + type)) W: what enters a stack. W [E, D] only where E != D.

    Normalised in BERT and after it (1810.04805), factorised, E < D, in ALBERT (1909.11942).

    Attributes:
      d_model: D.
      position_embedding: "learned" and "sinusoidal" are added here; the others are attention's
        matter.
      max_seq_len: rows of learned positions.
      num_token_types: number of types, of which each position has one; 0: none.
      scale: c, of the words.
      norm: a name of `NORMS`, or None.
      epsilon: of the norm.
      dropout: rate.
      table_init: initialiser of every table and matrix.
      dtype, param_dtype: of computation and of parameters.
    """

    d_model: int
    position_embedding: str
    max_seq_len: int
    num_token_types: int
    scale: float
    norm: str | None
    epsilon: float
    dropout: float
    table_init: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(
        self, words: jax.Array, positions: jax.Array, types: jax.Array | None, train: bool
    ) -> jax.Array:
        """[B, L, E], places [B, L] and types [B, L] (None: all 0) -> [B, L, D]."""
        x = words if self.scale == 1.0 else words * self.scale
        if self.position_embedding == "learned":
            x += self._table("position_embedding", self.max_seq_len, x.shape[-1])[positions]
        elif self.position_embedding == "sinusoidal":
            x += sinusoids(positions, x.shape[-1]).astype(x.dtype)
        if self.num_token_types:
            if self.position_embedding != "learned" and self.is_initializing():
                self.make_rng("params")  # the places' draw: types begin alike beside any places
            types = jnp.zeros_like(positions) if types is None else types
            x += self._table("type_embedding", self.num_token_types, x.shape[-1])[types]
        x = x.astype(self.dtype)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.norm is not None:
            x = NORMS[self.norm](epsilon=self.epsilon, name="norm", **dtypes)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if x.shape[-1] == self.d_model:
            return x
        options = {"kernel_init": self.table_init, "dot_general": dense_product, **dtypes}
        return nn.Dense(self.d_model, name="projection", **options)(x)

    def _table(self, name: str, rows: int, features: int) -> jax.Array:
        return self.param(name, self.table_init, (rows, features), self.param_dtype)
