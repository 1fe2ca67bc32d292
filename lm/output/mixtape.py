"""Mixtape: logits are mixed before one softmax, with priors of each token's own."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.pointwise import LogitsHead


class MixtapeHead(LogitsHead):
    """Mixed logits z_v = sum_k pi_kv tanh(h U_k + c_k) . w_v (Yang et al., NeurIPS 2019).

    The priors of each context and token are the leaves of a binary tree of sigmoids,
    sigmoid(u_v . tanh(h G_j) + h . g_j + b_vj) for its j-th fork, so they need no softmax over
    K. One softmax over the vocabulary follows; its log-probabilities are of high rank.

    Attributes:
      mixtures: K, a power of two; the paper uses 4.
      gates: size of u_v and of h G_j.
    """

    mixtures: int = 4
    gates: int = 16

    vocab_shardable = True
    vocab_dims = types.MappingProxyType({**LogitsHead.vocab_dims, "gate_table": 0, "gate_bias": 2})

    @property
    def logits_per_token(self) -> int:
        """K contexts and K - 1 forks for each token."""
        return (2 * self.mixtures - 1) * self.vocab_size

    @nn.compact
    def parts(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Priors and logits of the contexts, [K, N, V] each."""
        dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        forks, init = self.mixtures - 1, self.table_init
        if self.mixtures & forks:
            raise ValueError(f"mixtures = {self.mixtures} is not a power of two; use 2, 4 or 8")
        contexts = jnp.tanh(nn.Dense(self.mixtures * self.d_model, name="latent", **dense)(hidden))
        contexts = contexts.reshape(-1, self.mixtures, self.d_model).swapaxes(0, 1)
        table = self.table(embedding)
        logits = jnp.stack([self.project(context, table) for context in contexts])
        if not forks:
            return jnp.ones_like(logits), logits
        gates = jnp.tanh(nn.Dense(forks * self.gates, name="gate", **dense)(hidden))
        gates = gates.reshape(-1, forks, self.gates).swapaxes(0, 1)
        common = nn.Dense(forks, name="fork", **dense)(hidden).T[..., None]
        table = self.param("gate_table", init, (self.vocab_size, self.gates), self.param_dtype)
        bias = self.param(
            "gate_bias", nn.initializers.zeros, (forks, 1, self.vocab_size), self.param_dtype
        )
        own = jnp.stack([self.project(gate, table) for gate in gates])
        return tree_priors(own + common + bias), logits

    @nn.compact
    def raw_logits(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """The logits [N, V]."""
        priors, logits = self.parts(hidden, embedding)
        return self.add_bias(jnp.sum(priors * logits, axis=0))


def tree_priors(forks: jax.Array) -> jax.Array:
    """Leaves of a binary tree of sigmoids: [K - 1, ...] in levels from the root to [K, ...]."""
    leaves = jnp.ones_like(forks[:1])
    while len(leaves) <= len(forks):
        start = len(leaves) - 1
        right = jax.nn.sigmoid(forks[start : start + len(leaves)])
        left = jax.nn.sigmoid(-forks[start : start + len(leaves)])
        leaves = jnp.concatenate([leaves * left, leaves * right])
    return leaves
