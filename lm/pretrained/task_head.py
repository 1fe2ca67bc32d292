"""Maps the head of a fine-tuned task to the class of transformers that computes the same of hidden
states; where that class has another layer in between, it says so.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lm.config import Config
from lm.errors import UserError
from lm.pretrained.family import Family
from lm.pretrained.view import View

_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "answering": "ForQuestionAnswering",
}
# What ...ForSequenceClassification puts between the first hidden state and its matrix.
_BETWEEN = {
    "bert": "a pooler with tanh",
    "albert": "a pooler with tanh",
    "roberta": "a layer with tanh",
    "distilbert": "a layer with relu",
    "electra": "a layer with gelu",
}


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """A head as transformers has it.

    Attributes:
      architecture: the class.
      prefix: of the names of the body's tensors.
      views: our parameters as its tensors.
      bias: its tensor of zeros, where ours has none, and that one's size.
      settings: of config.json.
    """

    architecture: str
    prefix: str
    views: tuple[View, ...]
    bias: tuple[str, int] | None
    settings: dict[str, Any]


def task_head(config: Config, family: Family, labels: Sequence[str]) -> TaskHead:
    """The head of a config's task in a family's models.

    Args:
      config: of a run whose head chooses among labels, or points.
      family: of its model.
      labels: in the order of their numbers; () of numbers and of answers.

    Raises:
      UserError: transformers has no class that computes the same.
    """
    task = config.task.name
    if task not in _CLASSES:
        raise UserError(
            f"config.task.name = {task!r}: transformers' classes for such a task have another head "
            f"than ours; only {', '.join(_CLASSES)} are exported"
        )
    name = family.class_name + _CLASSES[task]
    _check_same_function(config, family, name)
    settings: dict[str, Any] = {"architectures": [name]}
    numbers = labels if task != "regression" else ["LABEL_0"]
    if task != "answering":
        settings["id2label"] = {str(i): label for i, label in enumerate(numbers)}
        settings["label2id"] = {label: i for i, label in enumerate(numbers)}
    if _CLASSES[task] == "ForSequenceClassification":
        kind = "regression" if task == "regression" else "single_label_classification"
        settings["problem_type"] = kind
    if task == "answering":
        # Its bias would be the same at every position: none of the answers is likelier for it.
        views, bias = (View("qa_outputs.weight", "read/query"),), ("qa_outputs.bias", 2)
        old = family.model_type in ("llama", "qwen2")  # whose class kept an older name
        return TaskHead(name, "transformer." if old else family.prefix, views, bias, settings)
    scores = task != "tagging" or family.model_type in ("llama", "qwen2")
    layer = "score" if scores else "classifier"
    views = (View(f"{layer}.weight", "head/table"), View(f"{layer}.bias", "head/bias"))
    lacks = task == "tagging" and not config.output.bias
    bias = (f"{layer}.bias", len(labels)) if lacks else None
    return TaskHead(name, family.prefix, views, bias, settings)


def _check_same_function(config: Config, family: Family, name: str) -> None:
    task = config.task.name
    wanted = "squared" if task == "regression" else "softmax"
    for key, value in (("head", wanted), ("cap", None), ("temperature", None)):
        if (own := config.output[key]) != value:
            raise UserError(f"{name} has no config.output.{key} = {own!r}, only {value!r}")
    if task in ("tagging", "answering"):
        return
    if family.model_type in _BETWEEN:
        raise UserError(
            f"{name} has {_BETWEEN[family.model_type]} between the first state and its matrix, and "
            f"a run of task {task} reads the {config.task.pooling} state itself: it would compute "
            "something else; use the run by eval here, or train a decoder, or tagging"
        )
    if config.task.pooling != "last":
        raise UserError(
            f"{name} reads the last token's state, and config.task.pooling is "
            f"{config.task.pooling!r}; train with 'last'"
        )
    if config.output.bias:
        raise UserError(f"{name} has no bias; train with config.output.bias=False")
