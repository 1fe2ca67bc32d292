"""Reads the teacher of a distillation: its config, fitted to the devices and rows of its student,
and its parameters.
"""

import dataclasses

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.checksum import check_source, record_source
from lm.checkpoints.hf import is_checkpoint, open_checkpoint, with_checkpoint_model
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.layer_layout import named_leaves
from lm.checkpoints.run_files import read_run_json, recorded_config
from lm.config import Config, chosen_options, override
from lm.data import Dataset, make_tokenizer
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.training.program import Program
from lm.training.train_state import Params, TrainState
from lm.training.validate import check_recorded

# In a workdir: the teacher that its run began with, and the hash of what it knows.
TEACHER = "teacher.json"

# What transformers computes, of keys that a student may have changed; the others rest at None.
_PLAIN = {
    "attention.mechanism": "scores",
    "attention.weighting": "softmax",
    "attention.learn": (),
    "attention.anneal": (),
    "output.head": "softmax",
}


def teacher_config(config: Config) -> Config | None:
    """The config of the teacher that `config.regularization.teacher` names; None: it names none.

    Raises:
      UserError: it is no run's folder, or its architecture, task, pooling or positions do not fit.
    """
    source = config.regularization.teacher
    if not source:
        return None
    if is_checkpoint(source):
        own = {"init_from": source, "finetuning.method": "full", "finetuning.adapter_from": ""}
        theirs = with_checkpoint_model(override(_plain(_without_teacher(config)), own))
    else:
        recorded = epath.Path(source) / "config.json"
        if not recorded.exists():
            raise UserError(f"config.regularization.teacher = {source!r}: there is no {recorded}")
        # What it learned at does not matter any more.
        theirs = _without_teacher(recorded_config(recorded))
        theirs = override(theirs, {"schedule.warmup_steps": 0})
        same = ("mesh", "batch_size", "grad_accum_steps", "cache_dir")
        theirs.unlock().update({name: config[name] for name in same})
    for name, own, other in (
        ("model.architecture", config.model.architecture, theirs.model.architecture),
        ("task.name", config.task.name, theirs.task.name),
        # It reads the rows of its student, and these hold the places of the student's pooling.
        ("task.pooling", config.task.pooling, theirs.task.pooling),
    ):
        if own != other:
            raise UserError(
                f"config.regularization.teacher = {source!r} has config.{name} = {other!r}, and "
                f"its student {own!r}; take a teacher of the same kind"
            )
    if OUTPUTS[theirs.output.head].needs_counts > OUTPUTS[config.output.head].needs_counts:
        raise UserError(
            f"config.regularization.teacher = {source!r} has the head {theirs.output.head}, which "
            f"asks for counts of words that {config.output.head} does not; take another teacher"
        )
    if theirs.model.max_seq_len < config.data.seq_len:
        raise UserError(
            f"config.regularization.teacher = {source!r} has {theirs.model.max_seq_len} positions, "
            f"fewer than config.data.seq_len = {config.data.seq_len}; shorten the rows"
        )
    if not is_checkpoint(source):
        check_recorded(theirs, epath.Path(source) / "config.json")
    return theirs


def _plain(config: Config) -> Config:
    """With the softmax in attention and head, whatever the student has in its place."""
    changed = [
        f"{group}.{key}"
        for group in ("attention", "encoder_attention", "cross_attention", "output")
        for key in chosen_options(config[group], ("query_chunk_size", "token_chunk_size", "tied"))
    ]
    return override(config, {key: _PLAIN.get(key) for key in changed})


def _without_teacher(config: Config) -> Config:
    """A config of the same model that needs no teacher."""
    return override(config, {"regularization.teacher": "", "regularization.distillation": 0.0})


def with_teacher(
    state: TrainState, program: Program, config: Config, corpus: Dataset, workdir: epath.Path
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
    hold(workdir / TEACHER, source, named_leaves(known))
    return dataclasses.replace(state, teacher=known)


def _params(teacher: Program, source: str, theirs: Config, corpus: Dataset) -> Params:
    _check_same_words(source, theirs, corpus)
    if not is_checkpoint(source):
        checkpoints = Checkpoints(source)
        state = restored_state(teacher, checkpoints, theirs)
        checkpoints.close()
        return state.eval_params
    shapes = {name: leaf.shape for name, leaf in named_leaves(teacher.abstract_params).items()}
    missing = shapes.keys() - open_checkpoint(source).find(shapes, theirs, teacher.labels).keys()
    if missing:
        raise UserError(
            f"config.regularization.teacher = {source!r} has no {', '.join(sorted(missing))}, and "
            "what it never learned it cannot teach; give the folder of a run that was trained from "
            "it"
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
