"""What does the teacher know? Its parameters, read when a student begins or goes on; all else that
it left is not looked at.
"""

import dataclasses
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.checksum import check_source, record_source
from lm.checkpoints.hf import is_checkpoint, open_checkpoint
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.run_files import read_run_json
from lm.config import Config
from lm.data import Dataset, make_tokenizer
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.training.regularization.teacher import teacher_config
from lm.training.train_state import TrainState
from lm.training.train_step import Program

# In a workdir: the teacher that its run began with, and the hash of what it knows.
TEACHER = "teacher.json"


def with_teacher(
    state: TrainState,
    program: Program,
    config: Config,
    corpus: Dataset,
    workdir: epath.Path,
) -> TrainState:
    """The state with the parameters of the program's teacher, where it has one.

    Raises:
      UserError: it has another tokenizer or other labels, no checkpoint, or no head of its own; or
        it is another than the one with which the run in the workdir began.
    """
    theirs = teacher_config(config)
    if theirs is None or program.teacher is None:
        return state
    source = config.regularization.teacher
    known = _params(program.teacher, source, theirs, corpus)
    hold = check_source if int(state.step) else record_source
    leaves = jax.tree_util.tree_leaves_with_path(known)
    hold(workdir / TEACHER, source, {jax.tree_util.keystr(path): x for path, x in leaves})
    return dataclasses.replace(state, teacher=known)


def _params(teacher: Program, source: str, theirs: Config, corpus: Dataset) -> Any:
    _check_same_words(source, theirs, corpus)
    if not is_checkpoint(source):
        checkpoints = Checkpoints(source)
        state = restored_state(teacher, checkpoints, theirs)
        checkpoints.close()
        return state.eval_params
    leaves = jax.tree_util.tree_leaves_with_path(teacher.abstract_params)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    missing = shapes.keys() - open_checkpoint(source).find(shapes, theirs, teacher.labels).keys()
    if missing:
        raise UserError(
            f"config.regularization.teacher = {source!r} has no {', '.join(sorted(missing))}, "
            f"and what "
            "it never learned it cannot teach; give the folder of a run that was trained from it"
        )
    return pretrained_params(teacher, theirs, jax.random.key(0))[0]


def _check_same_words(source: str, theirs: Config, corpus: Dataset) -> None:
    """Raises UserError where the numbers that teacher and student predict mean different things."""
    labels = ours = corpus.manifest.get("labels")
    if is_checkpoint(source):
        words = make_tokenizer(theirs.data.tokenizer, theirs.data.vocab_size, ()).hash
    else:
        manifest = read_run_json(epath.Path(source) / "data.json", "tokenizer.hash")
        words, labels = manifest["tokenizer"]["hash"], manifest.get("labels")
    if words != corpus.tokenizer.hash:
        raise UserError(
            f"config.regularization.teacher = {source!r} has another tokenizer than "
            f"config.data.tokenizer = {corpus.tokenizer.name!r}; use the same"
        )
    if labels != ours:
        raise UserError(
            f"config.regularization.teacher = {source!r} has the labels {labels}, and its student "
            f"{ours}; set config.task.labels"
        )
