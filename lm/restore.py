"""What did a run leave behind? A workdir's config, text, program and parameters, for evaluation and
generation.
"""

import dataclasses
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from lm.checkpoint import Checkpoints, restored_state
from lm.config import Config
from lm.data import Corpus
from lm.errors import UserError
from lm.step import Program
from lm.train import (
    check_same_config,
    check_same_text,
    corpus_program,
    prepare_corpus,
    read_json,
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run as one of its checkpoints has it.

    Attributes:
      config, corpus, program: as in training.
      params: the parameters to evaluate (the moving average where there is one).
      step: of the checkpoint.
    """

    config: Config
    corpus: Corpus
    program: Program
    params: Any
    step: int


def restore(workdir: epath.Path, step: int | None = None, given: Config | None = None) -> Restored:
    """Reads a workdir's checkpoint; `step` None takes the newest.

    The config is the workdir's own, or `given`, which may differ in mesh and evaluation.

    Raises:
      UserError: where the folder is no run's, the step was not kept, or the files are damaged.
    """
    recorded = workdir / "config.json"
    if not recorded.exists():
        raise UserError(f"{workdir} has no config.json, so it is no run's folder; train one there")
    config = ConfigDict(read_json(recorded))
    if given is not None:
        check_same_config(given, config, workdir, besides=("evaluation",))
        config = given
    corpus = prepare_corpus(config)
    check_same_text(workdir, corpus)
    program = corpus_program(config, corpus)
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps
    if step is not None and step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise UserError(f"--step={step} is not in {checkpoints.folder}; it holds {kept}")
    with jax.set_mesh(program.mesh):
        state = restored_state(program, checkpoints, str(config.init_from), step)
    checkpoints.close()
    return Restored(config, corpus, program, state.evaluated, int(state.step))
