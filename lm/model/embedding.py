"""The first hidden states: token vectors with those of their positions and types added, normalised
and widened where the model asks for it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.attention.positions import sinusoidal
from lm.model.config import EmbeddingConfig


class Embedding(nn.Module):
    """dropout(norm(c token + position + type)) W: what enters a stack. W [E, D] only where E != D.

    Normalised in BERT and after it (1810.04805), factorised, E < D, in ALBERT (1909.11942).

    Attributes:
      config: its sizes and parts; positions other than learned and sinusoidal are attention's.
    """

    config: EmbeddingConfig

    @nn.compact
    def __call__(
        self, words: jax.Array, positions: jax.Array, types: jax.Array | None, train: bool
    ) -> jax.Array:
        """[B, L, E], positions [B, L] and types [B, L] (None: all 0) -> [B, L, D]."""
        config = self.config
        x = words if config.embedding_scale == 1.0 else words * config.embedding_scale
        if config.position_embedding == "learned":
            x += self._table("position_embedding", config.max_seq_len, x.shape[-1])[positions]
        elif config.position_embedding == "sinusoidal":
            x += sinusoidal(positions, x.shape[-1]).astype(x.dtype)
        if config.num_token_types:
            if config.position_embedding != "learned" and self.is_initializing():
                self.make_rng("params")  # the positions' draw: types begin alike beside any
            types = jnp.zeros_like(positions) if types is None else types
            x += self._table("type_embedding", config.num_token_types, x.shape[-1])[types]
        x = x.astype(config.numerics.dtype)
        if config.norm is not None:
            x = config.norm.build("norm")(x)
        x = nn.Dropout(config.dropout, deterministic=not train)(x)
        if x.shape[-1] == config.d_model:
            return x
        return config.numerics.dense(config.d_model, "projection")(x)

    def _table(self, name: str, rows: int, features: int) -> jax.Array:
        own = self.config.numerics
        return self.param(name, own.init, (rows, features), own.dtypes["param_dtype"])
