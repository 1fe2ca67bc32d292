"""Who teaches? The config of the run, or of the checkpoint of transformers, whose predictions
distillation asks for, made fit for the devices and rows of its student.
"""

from etils import epath

from lm.checkpoints.hf import is_checkpoint, with_checkpoint_model
from lm.checkpoints.run_files import recorded_config
from lm.config import Config, chosen_options, override
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.training.validate import check_recorded

# What transformers computes, of keys that a student may have changed; the others rest at None.
_PLAIN = {
    "attention.mechanism": "scores",
    "attention.weighting": "softmax",
    "attention.learn": (),
    "attention.anneal": (),
    "output.head": "softmax",
}


def without_teacher(config: Config) -> Config:
    """A config of the same model that needs no teacher."""
    return override(config, {"regularization.teacher": "", "regularization.distillation": 0.0})


def teacher_config(config: Config) -> Config | None:
    """The config of the teacher that `config.regularization.teacher` names; None where there is
    none.

    Raises:
      UserError: it is no run's folder, or its architecture, task, pooling or positions do not fit.
    """
    source = config.regularization.teacher
    if not source:
        return None
    if is_checkpoint(source):
        own = {"init_from": source, "finetuning.method": "full", "finetuning.adapter_from": ""}
        theirs = with_checkpoint_model(override(_plain(without_teacher(config)), own))
    else:
        recorded = epath.Path(source) / "config.json"
        if not recorded.exists():
            raise UserError(f"config.regularization.teacher = {source!r}: there is no {recorded}")
        same = {
            name: config[name] for name in ("mesh", "batch_size", "grad_accum_steps", "cache_dir")
        }
        # What it learned at does not matter any more.
        theirs = without_teacher(recorded_config(recorded))
        theirs = override(theirs, {"schedule.warmup_steps": 0})
        theirs.unlock().update(same)
    for name, own, other in (
        ("model.architecture", config.model.architecture, theirs.model.architecture),
        ("task.name", config.task.name, theirs.task.name),
        # It reads the rows of its student, and these hold the places of the student's pooling.
        ("task.pooling", config.task.pooling, theirs.task.pooling),
    ):
        if own != other:
            raise UserError(
                f"config.regularization.teacher = {source!r} has config.{name} = {other!r}, and "
                f"its "
                f"student {own!r}; take a teacher of the same kind"
            )
    if OUTPUTS[theirs.output.head].needs_counts > OUTPUTS[config.output.head].needs_counts:
        raise UserError(
            f"config.regularization.teacher = {source!r} has the head {theirs.output.head}, "
            f"which asks "
            f"for counts of words that {config.output.head} does not; take another teacher"
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
    groups = ("attention", "encoder_attention", "cross_attention", "output")
    changed = [
        f"{group}.{key}"
        for group in groups
        for key in chosen_options(config[group], ("query_chunk_size", "token_chunk_size", "tied"))
    ]
    return override(config, {key: _PLAIN.get(key) for key in changed})
