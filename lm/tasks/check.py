"""Checks config.task before any work: it must suit the head and the architecture. Each failure
names the value, the limit and the remedy.
"""

import math

from lm.config import Config, Key, keys_of
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError, one_of
from lm.finetuning import max_text_len, method_names
from lm.output import OUTPUTS
from lm.tasks import TASKS, Task, build_task
from lm.tasks.classification import POOLERS, POOLINGS
from lm.tasks.labels import class_name
from lm.tasks.multiple_choice import READINGS
from lm.tasks.records import FORMATS
from lm.tasks.tag_scheme import MARKS

# Heads whose logits are products with a table that may be lent to them, row by row.
POINTERS = ("softmax", "sigsoftmax", "sparsemax", "entmax")


_NAMES = (
    Key("task.name", one_of=TASKS),
    Key("task.format", one_of=("", *FORMATS)),
    Key("task.pooling", one_of=POOLINGS),
    Key("task.tag_scheme", one_of=("", *MARKS)),
    Key("task.choice_labels", one_of=("", *READINGS)),
)


def check_task(config: Config) -> None:
    """Raises UserError for the first impossible setting."""
    for key in (*_NAMES, *keys_of(Task).values()):
        key.check(config)
    task = build_task(config)
    one_of("task.metric", task.main_metric, task.metrics)
    if config.task.max_new_tokens and config.task.name != "seq2seq":
        raise UserError(
            f"config.task.max_new_tokens makes task seq2seq write, and task {config.task.name} "
            "does not; leave it out"
        )
    most = most_written(config)
    if config.task.max_new_tokens and config.task.max_new_tokens > most:
        raise UserError(
            f"config.task.max_new_tokens = {config.task.max_new_tokens} leaves a source too few of "
            f"config.model.max_seq_len = {config.model.max_seq_len} positions; use at most {most}"
        )
    _check_packing(config)
    if config.task.balanced and config.task.name != "classification":
        raise UserError(
            f"config.task.balanced evens out classes, which task {config.task.name} has none of"
        )
    check_labels(config)
    _check_text(config)
    _check_architecture(config)
    _check_head(config)


def _check_packing(config: Config) -> None:
    """Texts that share a row must each be read as they are alone."""
    if not config.task.packing:
        return
    if not TASKS[config.task.name].packable:
        able = [name for name, each in TASKS.items() if each.packable]
        raise UserError(
            f"config.task.packing is of tasks {', '.join(able)}, not of {config.task.name}; leave "
            "it out"
        )
    barred = {
        "config.task.balanced": config.task.balanced,
        "config.regularization.mixup": config.regularization.mixup,
        "config.regularization.token_deletion": config.regularization.token_deletion,
        "config.regularization.smart": config.regularization.smart,
        "config.regularization.freelb": config.regularization.freelb,
        f"config.output.head = {config.output.head!r}": OUTPUTS[config.output.head].sequence_level,
        "method prompt": "prompt" in method_names(config),
    }
    for what, given in barred.items():
        if given:
            raise UserError(
                f"{what} goes by rows of one text each, and config.task.packing shares them; leave "
                "one of the two out"
            )


def check_labels(config: Config) -> None:
    """Raises UserError where config.task.labels are no set of labels."""
    labels = tuple(config.task.labels)
    texts = [class_name(label) for label in labels if isinstance(label, str)]
    if labels and not len(set(texts)) == len(labels) > 1:
        raise UserError(f"config.task.labels = {labels} must be two or more texts, all different")


def _check_text(config: Config) -> None:
    text, (least, most) = tuple(config.task.text), TASKS[config.task.name].num_text_columns
    if not least <= len(text) <= most:
        above = "" if least == most else " or more" if most == math.inf else f" to {most}"
        raise UserError(
            f"config.task.text = {text}: task {config.task.name} reads {least}{above} column"
            f"{'' if most == 1 else 's'}; name so many"
        )


def most_written(config: Config) -> int:
    """How many tokens fit behind any source; see `Seq2Seq.asked`."""
    if config.model.architecture == "encoder_decoder":
        return max_text_len(config) - len(encoder_decoder_tokens(config.special_tokens, 0).opens)
    return max_text_len(config) - config.data.seq_len // 2 - 2


def _check_architecture(config: Config) -> None:
    name, architecture = config.task.name, config.model.architecture
    suits = {"seq2seq": ("decoder", "encoder_decoder"), "instruction": ("decoder",)}
    suited = suits.get(name, ("encoder", "decoder"))
    if architecture not in suited:
        raise UserError(
            f"task {name} wants config.model.architecture {' or '.join(suited)}, not "
            f"{architecture!r}"
        )
    pooled = name in ("classification", "regression", "multiple_choice", "ranking")
    pooling = config.task.pooling
    if architecture == "decoder" and pooled and pooling in ("first", *POOLERS):
        raise UserError(
            f"config.task.pooling = {pooling!r}: a decoder's first hidden state has seen nothing "
            "of the text; use last or mean"
        )
    if pooling in POOLERS and name not in ("classification", "regression"):
        raise UserError(
            f"config.task.pooling = {pooling!r} is of classification and regression; use first, "
            "last or mean"
        )


def _check_head(config: Config) -> None:
    name, head, task = config.task.name, config.output.head, build_task(config)
    if config.output.tied and not task.predicts_tokens:
        raise UserError(
            f"task {name} chooses among labels, which are no tokens; use config.output.tied=False"
        )
    if task.real_targets != (head == "squared") and (task.real_targets or name != "classification"):
        wanted = "squared" if task.real_targets else "softmax"
        raise UserError(f"task {name} wants config.output.head = {wanted!r}, not {head!r}")
    if OUTPUTS[head].sequence_level and name != "token_classification":
        raise UserError(f"head {head} sees a row of labels; it suits task tagging, not {name}")
    if task.readout in ("span", "choice", "ranking"):
        if head not in POINTERS:
            raise UserError(
                f"task {name} points at places of a row, which head {head} cannot; use "
                f"{', '.join(POINTERS)}"
            )
        of_labels = f"is of a fixed set of labels, and task {name} chooses among places of a row"
        nearing = f"brings logits nearer to each other, and task {name} tells padding by a far one"
        reasons = dict.fromkeys(("bias", "label_smoothing", "class_weights"), of_labels)
        for option, reason in (reasons | {"cap": nearing, "temperature": nearing}).items():
            if config.output[option]:
                raise UserError(f"config.output.{option} {reason}; leave it out")
