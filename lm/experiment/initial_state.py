"""Makes the state in which a run begins or goes on: its parameters, and what stands beside them and
is in no checkpoint, a teacher's parameters and the importance of parameters to earlier tasks.
"""

import jax

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.initialize import starting_state
from lm.checkpoints.teacher import with_teacher
from lm.config import Config
from lm.data import Dataset
from lm.experiment.continual.importance import with_importance
from lm.training.announce import announced
from lm.training.profiling.paths import describe_paths
from lm.training.program import Program
from lm.training.train_state import TrainState


def initial_state(
    program: Program,
    checkpoints: Checkpoints,
    config: Config,
    dataset: Dataset,
    key: jax.Array,
    label: str,
) -> tuple[TrainState, str]:
    """The state, and a line that says where it came from and how its steps are computed; see
    `starting_state`.
    """
    with announced(f"{label}: making or reading the parameters"):
        state, source = starting_state(program, checkpoints, config, key)
        state = with_teacher(state, program, config, dataset, checkpoints.folder.parent)
        state = with_importance(state, program, config, dataset)
    return state, f"{source}; {describe_paths(program)}"
