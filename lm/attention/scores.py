"""Attention by scores: a weighting of `WEIGHTINGS` over q.k, alone or as the core of others."""

import flax.linen as nn
import jax
from flax.linen.initializers import constant

from lm.attention.attend import attend
from lm.attention.base import LayerContext, Mechanism, random_key
from lm.attention.mask import Mask
from lm.softmax import WEIGHTINGS

# Begins the names of parameters that a schedule moves.
ANNEALED = "annealed_"


class ScoreAttention(Mechanism):
    """Scores, a weighting, a weighted sum; owns the weighting's learned parameters and options."""

    scores_alone = True

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask,
        layer: LayerContext,
        gates: tuple[jax.Array, jax.Array] | None = None,
        mixing: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """[B, Q, H, K], [B, S, G, K], [B, S, G, K'] -> [B, Q, H, K']; gates, mixing: `attend`."""
        record = WEIGHTINGS[self.weighting]
        heads = query.shape[2]
        options, learned = {**record.options, **self.options}, {}
        for name, init in record.learned.items():
            init = constant(options.pop(name)) if name in options else init
            learned[name] = self.param(name, init, (heads,))
        for name in self.learn:
            start = constant(record.learnable[name].to_param(options.pop(name)))
            learned[name] = record.learnable[name].from_param(self.param(name, start, (heads,)))
        if self.anneal:
            name, first, *_ = self.anneal
            options.pop(name)
            current = self.param(ANNEALED + name, constant(first), (heads,))
            learned[name] = jax.lax.stop_gradient(current)
        return attend(
            query,
            key,
            value,
            mask=mask,
            weighting=self.weighting,
            learned=learned,
            options=options,
            position_bias=layer.position_bias,
            gates=gates,
            mixing=mixing,
            rng=random_key(self) if record.random else None,
            query_chunk_size=self.query_chunk_size,
        )


def score_attention(mechanism: Mechanism) -> ScoreAttention:
    """The scores within another mechanism, with its weighting; a submodule named "scores"."""
    names = ("weighting", "options", "learn", "anneal", "query_chunk_size")
    return ScoreAttention(**{name: getattr(mechanism, name) for name in names}, name="scores")
