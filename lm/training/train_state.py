"""Holds everything that training changes, and what it leaves alone, as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import optax

from lm.finetuning import combine

Params = Any  # a tree of parameters: arrays in dictionaries, by the names of the modules
Rows = Mapping[str, jax.Array]  # of a data set, by the names of the fields


# Fields that are in no checkpoint, as they do not change.
NOT_SAVED = ("frozen_params", "init_params", "teacher", "importance")


@flax.struct.dataclass
class TrainState:
    """The state of a run between two updates.

    Attributes:
      step: updates made.
      params: the parameters that are trained.
      opt_state: the optimizer's state, of these alone, in float32.
      ema_params: their moving average, in float32; None without `optimizer.ema_decay`.
      finite: False once a loss or a gradient was not finite; from then on the state stays as it
        was before that step.
      frozen_params: the other parameters, which have no gradient and are in no checkpoint.
      init_params: `params` as training began, in no checkpoint; None where no regularizer needs
        them.
      teacher: all parameters of the teacher, in no checkpoint; None where there is none.
      recent_losses: of the last steps, by the step's number modulo how many they are; None without
        `alarm.loss_spike`.
      penalty_scale: factor of the penalties; None where it does not adapt.
      importance: of every trained parameter to earlier tasks, in no checkpoint; None without `ewc`.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema_params: Params
    finite: jax.Array
    frozen_params: Params = flax.struct.field(default_factory=dict)
    init_params: Params = None
    teacher: Params = None
    penalty_scale: jax.Array | None = None
    recent_losses: jax.Array | None = None
    importance: Params = None

    @property
    def all_params(self) -> Params:
        """All parameters of the model as training has them."""
        return combine(self.params, self.frozen_params)

    @property
    def eval_params(self) -> Params:
        """The parameters that evaluation and generation use, all of the model."""
        trained = self.params if self.ema_params is None else self.ema_params
        return combine(trained, self.frozen_params)

    @property
    def saved(self) -> "TrainState":
        """What a checkpoint holds."""
        return dataclasses.replace(self, **dict.fromkeys(NOT_SAVED))
