"""What pulls parameters back? Penalties on their size, or on their way from where they began."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.config import Config
from lm.errors import UserError
from lm.training.float32_state import path_seed
from lm.training.optimizer import decayed


def penalty(settings: Config, params: Any, start: Any, importance: Any = None) -> jax.Array:
    """l1 sum|w| + l2/2 sum w^2 + l2_sp/2 sum (w - w0)^2 + ewc/2 sum F (w - w0)^2, a scalar in
    nats per token.

    The first two are over kernels and word tables, L2-SP (1802.01483) and elastic weight
    consolidation (1612.00796) over all that is trained.

    Args:
      settings: `config.regularization`.
      params: w, those trained.
      start: w0, of the same shapes; looked at only where l2_sp or ewc is above 0.
      importance: F, likewise; looked at only where ewc is above 0.
    """
    mask = decayed(params)
    total = jnp.zeros(())
    if settings.l1:
        total += settings.l1 * _sum(lambda w, d: jnp.sum(jnp.abs(w)) * d, params, mask)
    if settings.l2:
        total += settings.l2 / 2 * _sum(lambda w, d: jnp.sum(jnp.square(w)) * d, params, mask)
    if settings.l2_sp:
        moved = _sum(lambda w, w0: jnp.sum(jnp.square(w - w0)), params, start)
        total += settings.l2_sp / 2 * moved
    if settings.ewc:
        weighed = _sum(lambda w, w0, f: jnp.sum(f * jnp.square(w - w0)), params, start, importance)
        total += settings.ewc / 2 * weighed
    return total


def mixout(rate: float, params: Any, start: Any, key: jax.Array) -> Any:
    """Every kernel with the share `rate` of its elements put back to w0 (1909.11299).

    (m w + (1 - m) w0 - p w0) / (1 - p) with m drawn from Bernoulli(1 - p), whose mean is w. Each
    kernel has draws of its own, by its path.
    """

    def mixed(path: Any, w: jax.Array, w0: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return w
        keep = jax.random.bernoulli(jax.random.fold_in(key, path_seed(path)), 1.0 - rate, w.shape)
        wide = jnp.promote_types(w.dtype, "float32")
        put, back = jnp.where(keep, w, w0).astype(wide), w0.astype(wide)
        return ((put - rate * back) / (1.0 - rate)).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(mixed, params, start)


def check_acts(config: Config, params: Any) -> None:
    """Raises UserError where a penalty or mixout finds nothing of its kind among `params`, those
    trained.
    """
    kernels = [path[-1].key == "kernel" for path, _ in jax.tree.leaves_with_path(params)]
    decays = any(jax.tree.leaves(decayed(params)))
    for name, kind, found in (
        ("l1", "kernels and word tables", decays),
        ("l2", "kernels and word tables", decays),
        ("mixout", "kernels", any(kernels)),
    ):
        if config.regularization[name] and not found:
            raise UserError(
                f"config.regularization.{name} = {config.regularization[name]} acts on {kind}, "
                f"of which "
                f"config.finetuning.method = {config.finetuning.method!r} trains none; use "
                f"l2_sp, or method "
                "full or layers"
            )


def _sum(function: Any, *trees: Any) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(function, *trees)), jnp.zeros(()))
