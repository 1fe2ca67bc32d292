"""What does training change? Parameters, the optimizer's moments, and what stands beside them."""

import dataclasses
from typing import Any

import flax.struct
import jax

from lm.finetuning import combine


@flax.struct.dataclass
class State:
    """Everything that training changes, and what it leaves alone.

    Attributes:
      step: updates made.
      params: the parameters that are trained.
      moments: the optimizer's state, of these alone, in float32.
      average: their moving average, in float32; None without `optimizer.ema_decay`.
      finite: False once a loss or a gradient was not finite; from then on the state stays as it
        was before that step.
      frozen: the other parameters, which have no gradient and are in no checkpoint.
      start: `params` as training began, in no checkpoint; None where no regulariser asks.
      teacher: all parameters of the teacher, in no checkpoint; None where there is none.
      strength: factor of the penalties; None where it does not adapt.
      importance: of every trained parameter to earlier tasks, in no checkpoint; None without `ewc`.
    """

    step: jax.Array
    params: Any
    moments: Any
    average: Any
    finite: jax.Array
    frozen: Any = flax.struct.field(default_factory=dict)
    start: Any = None
    teacher: Any = None
    strength: Any = None
    importance: Any = None

    @property
    def whole(self) -> Any:
        """All parameters of the model as training has them."""
        return combine(self.params, self.frozen)

    @property
    def evaluated(self) -> Any:
        """The parameters that evaluation and generation use, all of the model."""
        return combine(self.params if self.average is None else self.average, self.frozen)

    @property
    def saved(self) -> Any:
        """What a checkpoint holds."""
        return dataclasses.replace(self, frozen=None, start=None, teacher=None, importance=None)
