"""The parameters that a server computes with: one base, and several adapters beside it on the
device, of which every row of a batch may use another.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lm.checkpoints.layer_layout import named_leaves
from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.finetuning import FinetuningConfig, combine, partition
from lm.generation.decode import next_token_log_probs
from lm.model.transformer import Transformer
from lm.output.base import Head

# Modules between the last hidden states and the distribution over tokens.
_HEAD = ("head", "embedding", "transform")


@flax.struct.dataclass
class Weights:
    """Parameters of a model, of which some differ by adapter.

    Attributes:
      base: the parameters that all adapters share; all of them where there are no adapters.
      adapters: the others, each with a leading axis [A] of places; {} where there are none.
    """

    base: Mapping[str, Any]
    adapters: Mapping[str, Any]

    def select(self, place: jax.Array | int) -> Mapping[str, Any]:
        """All parameters of the adapter at a place."""
        if not self.adapters:
            return self.base
        return combine(jax.tree.map(lambda leaf: leaf[place], self.adapters), self.base)

    @property
    def shares_head(self) -> bool:
        """Whether all adapters have the same output head."""
        return not any(path[0] in _HEAD for path in flatten_dict(self.adapters))

    @property
    def places(self) -> int:
        """A, how many adapters there is room for; 1 where there are none."""
        leaves = jax.tree.leaves(self.adapters)
        return len(leaves[0]) if leaves else 1


def fixed_weights(params: Mapping[str, Any]) -> Weights:
    """The weights of a run without adapters to exchange."""
    return Weights(base=params, adapters={})


def adapter_weights(run: Restored, places: int) -> Weights:
    """The weights of a fine-tuned run, with its own adapter at place 0 and room for others.

    Raises:
      UserError: the run's method of fine-tuning changes its base.
    """
    own, base = _parts(run)
    stacked = jax.tree.map(
        lambda leaf: jnp.stack([leaf] + [jnp.zeros_like(leaf)] * (places - 1)), own
    )
    return Weights(base=base, adapters=stacked)


def adapter_of(run: Restored, weights: Weights, name: str) -> Mapping[str, Any]:
    """What another run of the same base puts in an adapter's place.

    Raises:
      UserError: its base differs, or its adapter is of another kind or size.
    """
    own, base = _parts(run)
    ours, theirs = named_leaves(weights.adapters), named_leaves(own)
    if {k: v.shape[1:] for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise UserError(
            f"adapter {name!r} has other parameters than the adapter that the server began with: "
            "all need the same config.finetuning and the same sizes"
        )
    shared, found = named_leaves(weights.base), named_leaves(base)
    same = shared.keys() == found.keys() and all(
        np.array_equal(shared[key], found[key]) for key in shared
    )
    if not same:
        raise UserError(
            f"adapter {name!r} was trained on another base; start a server of its own for it"
        )
    return own


@jax.jit
def with_adapter(weights: Weights, own: Mapping[str, Any], place: jax.Array) -> Weights:
    """The weights with other parameters at an adapter's place."""
    written = jax.tree.map(lambda all_, one: all_.at[place].set(one), weights.adapters, own)
    return Weights(base=weights.base, adapters=written)


def token_log_probs(
    model: Transformer, weights: Weights, hidden: jax.Array, places: jax.Array
) -> jax.Array:
    """Log-probabilities [B, V] in nats of inputs of the head [B, D], by each row's adapter."""
    if weights.shares_head:
        return next_token_log_probs(model, weights.select(0), hidden)

    def one(hidden: jax.Array, place: jax.Array) -> jax.Array:
        return next_token_log_probs(model, weights.select(place), hidden[None])[0]

    return jax.vmap(one)(hidden, places)


def head_draws(
    model: Transformer, weights: Weights, hidden: jax.Array, places: jax.Array, keys: jax.Array
) -> jax.Array | None:
    """Tokens [B] that the head draws itself from its own distribution, as `lm.generation.generate`
    has it draw where no token is excluded; None where it has no such way.
    """
    if type(model.output_head()).sample is Head.sample:
        return None

    def one(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        hidden, place, key = row
        variables = {"params": weights.select(place)}
        tokens = jnp.asarray(model.apply(variables, hidden[None], key, method="sample_tokens"))
        return tokens[0].astype(jnp.int32)

    # One after the other: vmap would compute every branch of such a draw.
    return jax.lax.map(one, (hidden, places, keys))


def _parts(run: Restored) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the run's method of fine-tuning trains, and the base that it leaves alone."""
    finetuning: FinetuningConfig = run.program.config.finetuning
    own, base = partition(run.params, finetuning.frozen_layers)
    if not base or flatten_dict(own).keys() & flatten_dict(base).keys():
        raise UserError(
            f"config.finetuning.method = {run.config.finetuning.method!r} has no adapters that a "
            "server could exchange; leave out --adapters, or use a run of method lora"
        )
    return own, base
