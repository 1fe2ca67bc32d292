"""Holds penalties on the size of parameters or on their distance from where training began, and
mixout, which puts some of them back there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.training.config import RegularizationConfig, TrainingConfig
from lm.training.mixed_precision import in_float32, path_seed
from lm.training.optimizer import decayed
from lm.training.train_state import Params, TrainState


def penalty(
    config: RegularizationConfig, params: Params, init_params: Params, importance: Params = None
) -> jax.Array:
    """l1 sum|w| + l2/2 sum w^2 + l2_sp/2 sum (w - w0)^2 + ewc/2 sum F (w - w0)^2, a scalar in
    nats per token.

    The first two are over kernels and embedding tables, L2-SP (1802.01483) and elastic weight
    consolidation (1612.00796) over all that is trained.

    Args:
      config: the coefficients.
      params: w, those trained.
      init_params: w0, of the same shapes; used only where l2_sp or ewc is above 0.
      importance: F, likewise; used only where ewc is above 0.
    """
    mask = decayed(params)
    total = jnp.zeros(())
    if config.l1:
        total += config.l1 * _sum(lambda w, d: jnp.sum(jnp.abs(w)) * d, params, mask)
    if config.l2:
        total += config.l2 / 2 * _sum(lambda w, d: jnp.sum(jnp.square(w)) * d, params, mask)
    if config.l2_sp:
        moved = _sum(lambda w, w0: jnp.sum(jnp.square(w - w0)), params, init_params)
        total += config.l2_sp / 2 * moved
    if config.ewc:
        weighted = _sum(
            lambda w, w0, f: jnp.sum(f * jnp.square(w - w0)), params, init_params, importance
        )
        total += config.ewc / 2 * weighted
    return total


def penalty_and_grad(config: RegularizationConfig, state: TrainState) -> tuple[jax.Array, Params]:
    """The penalty of a state, times its `penalty_scale`, and its gradient by the parameters."""
    params, init_params = in_float32(state.params), in_float32(state.init_params)
    found = jax.value_and_grad(penalty, argnums=1)(config, params, init_params, state.importance)
    if state.penalty_scale is None:
        return found
    scale = state.penalty_scale
    return jax.tree.map(lambda x: x * scale.astype(x.dtype), found)


def mixout(rate: float, params: Params, init_params: Params, key: jax.Array) -> Params:
    """Every kernel with the share `rate` of its elements put back to w0 (1909.11299).

    (m w + (1 - m) w0 - p w0) / (1 - p) with m drawn from Bernoulli(1 - p), whose mean is w. Each
    kernel has draws of its own, by its path.
    """

    def mixed(path: jax.tree_util.KeyPath, w: jax.Array, w0: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":  # pyright: ignore[reportAttributeAccessIssue]
            return w
        keep = jax.random.bernoulli(jax.random.fold_in(key, path_seed(path)), 1.0 - rate, w.shape)
        wide = jnp.promote_types(w.dtype, "float32")
        put, back = jnp.where(keep, w, w0).astype(wide), w0.astype(wide)
        return ((put - rate * back) / (1.0 - rate)).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(mixed, params, init_params)


def check_penalized(config: TrainingConfig, params: Params) -> None:
    """Raises UserError where a penalty or mixout finds nothing of its kind among `params`, those
    trained.
    """
    kernels = [path[-1].key == "kernel" for path, _ in jax.tree.leaves_with_path(params)]
    decays, given = any(jax.tree.leaves(decayed(params))), config.regularization
    for name, value, kind, found in (
        ("l1", given.l1, "kernels and embedding tables", decays),
        ("l2", given.l2, "kernels and embedding tables", decays),
        ("mixout", given.mixout, "kernels", any(kernels)),
    ):
        if value and not found:
            method = "+".join(config.finetuning.methods)
            raise UserError(
                f"config.regularization.{name} = {value} acts on {kind}, of which "
                f"config.finetuning.method = {method!r} trains none; use l2_sp, or method full or "
                "layers"
            )


def _sum(function: Callable[..., jax.Array], *trees: Params) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(function, *trees)), jnp.zeros(()))
