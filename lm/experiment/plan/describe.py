"""Builds the program of a config for described devices, without its data: tokenizers have their
size and special tokens, and tasks their classes, by the config alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.checkpoints.teacher import teacher_config
from lm.config import Config, override
from lm.data import Tokenizer
from lm.data.make_tokenizer import untrained_tokenizer
from lm.experiment.validate import check
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.prepare import layout_of
from lm.training.program import Program, build_program

# Where only the data says how many labels there are, and from how many texts a question chooses.
_LABELS, _CHOICES = tuple(map(str, range(16))), 4


class Described(NamedTuple):
    """A program that was built without data.

    Attributes:
      config: with a number of steps, where epochs would give it.
      program: for described devices.
      assumed: what the data would have said, a line for each.
    """

    config: Config
    program: Program
    assumed: tuple[str, ...]


def describe_program(config: Config, devices: Sequence[Any]) -> Described:
    """The program of a config on `devices`; reads no data, and no checkpoint but the config of one
    that init_from names.

    A method of fine-tuning needs no init_from here, whose sizes the config may give itself.

    Raises:
      UserError: the config is impossible, or does not divide over the devices.
    """
    check(config if config.init_from else override(config, {"init_from": "the checkpoint"}))
    assumed = []
    if config.epochs is not None:
        config = override(config, {"steps": max(config.steps, config.schedule.warmup_steps + 1)})
        assumed.append(f"{config.steps} steps, as config.epochs counts rows of the data")
    tokenizer = untrained_tokenizer(config.data.tokenizer, config.data.vocab_size)
    layout = None
    if config.task.name:
        layout, unread = _layout(config, tokenizer)
        assumed += unread
    program = build_program(
        config,
        tokenizer.vocab_size,
        tokenizer=tokenizer,
        layout=layout,
        teacher=teacher_config(config),
        devices=devices,
    )
    return Described(config, program, tuple(assumed))


def _layout(config: Config, tokenizer: Tokenizer) -> tuple[Layout, list[str]]:
    """What a task's rows are made of, and what was assumed of it."""
    task, assumed = build_task(config), []
    labels, choices = tuple(config.task.labels), len(config.task.choices)
    layouts = [layout_of(task, config, tokenizer, given) for given in (_LABELS, _LABELS[1:])]
    if not labels and layouts[0].num_classes != layouts[1].num_classes:
        labels = _LABELS
        assumed.append(f"{len(labels)} labels, as config.task.labels names none")
    if config.task.name in ("multiple_choice", "ranking") and choices < 2:
        choices = _CHOICES
        assumed.append(f"{choices} texts to choose from, as config.task.choices is one column")
    return layout_of(task, config, tokenizer, labels, choices), assumed
