"""Computes a loss whose tokens and vocabulary are split over devices: each computes the logits of
its tokens and its part of the vocabulary, and exchanges a few numbers per token.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lm.devices.sharding import TOKEN_AXES, VOCAB_AXIS
from lm.output.chunked import TokenMap
from lm.output.loss_and_grad import LossAndGrad


@dataclasses.dataclass(frozen=True)
class Shards:
    """How devices share a head's work.

    Attributes:
      mesh: the devices.
      token_axes: mesh axes over which tokens are split.
      vocab_axis: the mesh axis over which the vocabulary is split; None: it is whole.
    """

    mesh: Mesh
    token_axes: tuple[str, ...] = TOKEN_AXES
    vocab_axis: str | None = VOCAB_AXIS

    @property
    def token_shards(self) -> int:
        """Into how many parts tokens are split."""
        return self.mesh.size // self.vocab_shards

    @property
    def vocab_shards(self) -> int:
        """Into how many parts the vocabulary is split."""
        return 1 if self.vocab_axis is None else self.mesh.shape[self.vocab_axis]

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes over which work is split."""
        return self.token_axes if self.vocab_axis is None else (*self.token_axes, self.vocab_axis)

    def of_vocab(self, vocab_size: int) -> "Shards":
        """The same where V divides over the devices; else tokens are split over these too."""
        if vocab_size % self.vocab_shards == 0:
            return self
        return dataclasses.replace(self, token_axes=self.axes, vocab_axis=None)

    def specs(self, params: tuple[Any, Any], vocab_dims: Mapping[str, int]) -> tuple[Any, Any]:
        """Partition specs of a head's own parameters and of a borrowed table.

        Args:
          params: own parameters by name, and the table [V, D] or None.
          vocab_dims: which of the own are split by vocabulary, and along which dimension.
        """
        own, embedding = params

        def spec(name: str, value: Any) -> Any:
            if name in vocab_dims and self.vocab_axis is not None:
                return PartitionSpec(*(None,) * vocab_dims[name], self.vocab_axis)
            return jax.tree.map(lambda _: PartitionSpec(), value)

        rows = PartitionSpec() if self.vocab_axis is None else PartitionSpec(self.vocab_axis)
        embedding_spec = None if embedding is None else rows
        return {name: spec(name, value) for name, value in own.items()}, embedding_spec


def output_shards(mesh: Mesh) -> Shards | None:
    """How the devices of a mesh share the output head; None: there is one device."""
    return None if mesh.size == 1 else Shards(mesh)


def sharded(compute: LossAndGrad, shards: Shards, vocab_dims: Mapping[str, int]) -> LossAndGrad:
    """Computes a `loss_sum` with every device at work on its part of tokens and vocabulary.

    Args:
      compute: of a loss that sees a device's part of the vocabulary only and finds the rest by
        collectives over `shards.vocab_axis` (see `logit_stats`).
      shards: how tokens and vocabulary are split.
      vocab_dims: see `Shards.specs`.
    """
    tokens = PartitionSpec(shards.token_axes)

    def on_all_devices(params, shared, index, hidden, targets, weights):
        specs = shards.specs(params, vocab_dims)

        def on_one(params, shared, index, hidden, targets, weights):
            # Every part of the vocabulary finds the same losses: each counts for its share of them.
            weights = weights / shards.vocab_shards
            value, grads = compute(params, shared, index, hidden, targets, weights)
            params_grad, hidden_grad = grads

            def reduce(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
                return jax.lax.psum(grad, shards.token_axes if any(spec) else shards.axes)

            params_grad = jax.tree.map(reduce, params_grad, specs)
            if shards.vocab_axis is not None:
                wide = hidden_grad.astype(jnp.promote_types(hidden_grad.dtype, jnp.float32))
                hidden_grad = jax.lax.psum(wide, shards.vocab_axis).astype(hidden_grad.dtype)
            return jax.lax.psum(value, shards.axes), (params_grad, hidden_grad)

        return _shard_map(
            on_one,
            shards,
            (specs, PartitionSpec(), tokens, tokens, tokens, tokens),
            (PartitionSpec(), (specs, tokens)),
        )(params, shared, index, hidden, targets, weights)

    return on_all_devices


def sharded_map(each: TokenMap, shards: Shards, vocab_dims: Mapping[str, int]) -> TokenMap:
    """Maps over every token of a device's part; see `sharded`."""

    def on_all_devices(params, *tokens):
        split = PartitionSpec(shards.token_axes)
        specs = (shards.specs(params, vocab_dims), *(split,) * len(tokens))
        return _shard_map(each, shards, specs, split)(params, *tokens)

    return on_all_devices


def _shard_map(
    function: Callable[..., Any], shards: Shards, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    # Gradients are never taken through this, so that JAX need not follow what varies over devices.
    return jax.shard_map(
        function, mesh=shards.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
