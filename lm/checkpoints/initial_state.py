"""In which state does a leg of a run begin? That of its starting point, with what stands beside it
and is in no checkpoint: a teacher's parameters, and the weights of earlier tasks.
"""

from typing import Any

import jax

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.initialize import starting_state
from lm.checkpoints.teacher import with_teacher
from lm.config import Config
from lm.experiment.continual.importance import with_importance
from lm.training.program import Program
from lm.training.train_state import TrainState


def beginning(
    program: Program, checkpoints: Checkpoints, config: Config, corpus: Any, key: jax.Array
) -> tuple[TrainState, str]:
    """The state, and a line that says where it came from; see `starting_state`."""
    state, origin = starting_state(program, checkpoints, config, key)
    state = with_teacher(state, program, config, corpus, checkpoints.folder.parent)
    return with_importance(state, program, config, corpus), origin
