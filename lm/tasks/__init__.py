"""The tasks that models are fine-tuned for. `TASKS` maps every task's name to its class: how
records become rows, which hidden states the output head sees, and the metrics of predictions.

Adding a task is one module in this package and one entry in the table below.
"""

from lm.config import Config, typed
from lm.tasks.base import Task
from lm.tasks.classification import Classification, Regression
from lm.tasks.extractive_qa import ExtractiveQA
from lm.tasks.multiple_choice import MultipleChoice
from lm.tasks.ranking import Ranking
from lm.tasks.seq2seq import Instruction, Seq2Seq
from lm.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "regression": Regression,
    "token_classification": TokenClassification,
    "extractive_qa": ExtractiveQA,
    "multiple_choice": MultipleChoice,
    "ranking": Ranking,
    "seq2seq": Seq2Seq,
    "instruction": Instruction,
}


def build_task(config: Config) -> Task:
    """The task that config.task names, with its options."""
    return typed(TASKS[config.task.name], config)


def predicts_tokens(config: Config) -> bool:
    """Whether the head predicts tokens, as in language modelling and in text generation."""
    return not config.task.name or TASKS[config.task.name].predicts_tokens


__all__ = ["TASKS", "Task", "build_task", "predicts_tokens"]
