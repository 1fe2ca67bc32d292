"""Raises an alarm at a step whose loss or gradient is far from usual, and may skip its update."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from lm.config import Key

POLICIES = ("warn", "skip", "rollback")


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """When a step raises an alarm, and what follows; see `configs/default.py`."""

    loss_spike: Annotated[float, Key("alarm.loss_spike", at_least=0)]
    window: Annotated[int, Key("alarm.window", at_least=4)]
    grad_norm: Annotated[float, Key("alarm.grad_norm", at_least=0)]
    policy: Annotated[str, Key("alarm.policy", one_of=POLICIES)]
    max_rollbacks: Annotated[int, Key("alarm.max_rollbacks", at_least=1)]

    @property
    def on(self) -> bool:
        """Whether any step can raise an alarm."""
        return bool(self.loss_spike or self.grad_norm)

    def initial_losses(self) -> jax.Array | None:
        """The losses of the last steps before any, NaN [window]; None where none are kept."""
        return jnp.full(self.window, jnp.nan) if self.loss_spike else None

    def loss_limit(self, losses: jax.Array) -> jax.Array:
        """The loss above which a step raises an alarm: median + loss_spike * deviation of the last
        losses [window]; NaN, above which nothing is, until there are so many.

        The deviation is 1.4826 times the median absolute deviation from the median, the standard
        deviation where losses are normal, which a spike among them does not move.
        """
        median = jnp.median(losses)
        deviation = 1.4826 * jnp.median(jnp.abs(losses - median))
        return median + self.loss_spike * deviation

    def judge(
        self, losses: jax.Array | None, loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Whether a step raises an alarm, and metrics; `losses` are those of the steps before."""
        alarm, found = jnp.array(False), {}
        if self.grad_norm:
            alarm |= grad_norm > self.grad_norm
        if losses is not None:
            found["loss_limit"] = self.loss_limit(losses)
            alarm |= loss > found["loss_limit"]
        return alarm, found | {"train/alarm": alarm.astype(jnp.float32)}

    def remember(
        self, losses: jax.Array | None, step: jax.Array, loss: jax.Array, finite: jax.Array
    ) -> jax.Array | None:
        """The last losses, with that of the step after `step` if it is finite.

        Those of steps that raised an alarm too, so that a new level is usual after half a window.
        """
        if losses is None:
            return None
        return jnp.where(finite, losses.at[step % self.window].set(loss), losses)
