"""How is a loss computed where tokens and words are split over devices? Each device computes its
words' logits of its tokens, and learns what else it needs in a few numbers per token.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lm.devices.sharding import BATCH_AXES, VOCAB_AXIS
from lm.output.chunked import PerToken
from lm.output.loss_and_grad import Compute


@dataclasses.dataclass(frozen=True)
class Shards:
    """How devices share a head's work.

    Attributes:
      mesh: the devices.
      tokens: mesh axes over which tokens are split.
      words: the mesh axis over which words are split.
    """

    mesh: Mesh
    tokens: tuple[str, ...]
    words: str

    @property
    def token_parts(self) -> int:
        """Into how many parts tokens are split."""
        return self.mesh.size // self.word_parts

    @property
    def word_parts(self) -> int:
        """Into how many parts words are split."""
        return self.mesh.shape[self.words]

    def specs(self, params: tuple[Any, Any], by_words: Mapping[str, int]) -> tuple[Any, Any]:
        """Partition specs of a head's own parameters and of a borrowed table.

        Args:
          params: own parameters by name, and the table [V, D] or None.
          by_words: which of the own are split by words, and along which axis.
        """
        own, embedding = params

        def spec(name: str, value: Any) -> Any:
            if name in by_words:
                return PartitionSpec(*(None,) * by_words[name], self.words)
            return jax.tree.map(lambda _: PartitionSpec(), value)

        of_embedding = None if embedding is None else PartitionSpec(self.words)
        return {name: spec(name, value) for name, value in own.items()}, of_embedding


def output_shards(mesh: Mesh) -> Shards | None:
    """How the devices of a mesh share the output head; None: there is one device."""
    return None if mesh.size == 1 else Shards(mesh, tokens=BATCH_AXES, words=VOCAB_AXIS)


def sharded(compute: Compute, shards: Shards, by_words: Mapping[str, int]) -> Compute:
    """Computes a `total` with every device at work on its part of the tokens and of the words.

    Args:
      compute: of a loss that sees a device's words only and finds the rest by collectives over
        `shards.words` (see `statistics`).
      shards: how tokens and words are split.
      by_words: see `Shards.specs`.
    """
    tokens = PartitionSpec(shards.tokens)

    def everywhere(params, shared, rows, hidden, targets, weights):
        specs = shards.specs(params, by_words)

        def here(params, shared, rows, hidden, targets, weights):
            # Every part of the words finds the same losses: each counts for its share of them.
            weights = weights / shards.word_parts
            value, (of_params, of_hidden) = compute(params, shared, rows, hidden, targets, weights)

            def whole(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
                axes = shards.tokens if shards.words in spec else (*shards.tokens, shards.words)
                return jax.lax.psum(gradient, axes)

            of_params = jax.tree.map(whole, of_params, specs)
            wide = of_hidden.astype(jnp.promote_types(of_hidden.dtype, jnp.float32))
            of_hidden = jax.lax.psum(wide, shards.words).astype(of_hidden.dtype)
            return jax.lax.psum(value, (*shards.tokens, shards.words)), (of_params, of_hidden)

        return _on_all(
            here,
            shards,
            (specs, PartitionSpec(), tokens, tokens, tokens, tokens),
            (PartitionSpec(), (specs, tokens)),
        )(params, shared, rows, hidden, targets, weights)

    return everywhere


def sharded_map(each: PerToken, shards: Shards, by_words: Mapping[str, int]) -> PerToken:
    """Finds what `each` does for every token of a device's part; see `sharded`."""

    def everywhere(params, *tokens):
        split = PartitionSpec(shards.tokens)
        specs = (shards.specs(params, by_words), *(split,) * len(tokens))
        return _on_all(each, shards, specs, split)(params, *tokens)

    return everywhere


def _on_all(function, shards: Shards, in_specs, out_specs):
    # Gradients are never taken through this, so that JAX need not follow what varies over devices.
    return jax.shard_map(
        function, mesh=shards.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
