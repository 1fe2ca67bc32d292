"""Maps the head of a fine-tuned task to the class of transformers that computes the same of hidden
states; where that class has another layer in between, it says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.view import Tensor, View, linear
from lm.config import Config
from lm.errors import UserError
from lm.tasks.labels import class_name

_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "extractive_qa": "ForQuestionAnswering",
}
# Of each family's ...ForSequenceClassification the layer between the first hidden state and its
# matrix, as a name of config.task.pooling and of its tensors, and that matrix.
_POOLERS = {
    "bert": ("pooler_tanh", "pooler.dense", "classifier"),
    "albert": ("pooler_tanh", "pooler", "classifier"),
    "roberta": ("pooler_tanh", "classifier.dense", "classifier.out_proj"),
    "distilbert": ("pooler_relu", "pre_classifier", "classifier"),
    "electra": ("pooler_gelu", "classifier.dense", "classifier.out_proj"),
}
_OUTSIDE = ("classifier", "pre_classifier", "score", "qa_outputs")  # not in the body


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

    @property
    def outside(self) -> tuple[str, ...]:
        """The names of its tensors that have no prefix."""
        return tuple(v.theirs for v in self.views if v.theirs.startswith(_OUTSIDE))


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
    if task != "extractive_qa":
        settings["id2label"] = {str(i): label for i, label in enumerate(numbers)}
        settings["label2id"] = {label: i for i, label in enumerate(numbers)}
    if _CLASSES[task] == "ForSequenceClassification":
        kind = "regression" if task == "regression" else "single_label_classification"
        settings["problem_type"] = kind
    if task == "extractive_qa":
        # Its bias would be the same at every position: none of the answers is likelier for it.
        views, bias = (View("qa_outputs.weight", "read/query"),), ("qa_outputs.bias", 2)
        return TaskHead(name, body_prefix(family, name), views, bias, settings)
    if task != "token_classification" and family.model_type in _POOLERS:
        _, dense, matrix = _POOLERS[family.model_type]
        views = (
            *linear(dense, "read/dense"),
            View(f"{matrix}.weight", "head/table"),
            View(f"{matrix}.bias", "head/bias"),
        )
        bias = None if config.output.bias else (f"{matrix}.bias", len(numbers))
        return TaskHead(name, family.prefix, views, bias, settings)
    scores = task != "token_classification" or family.model_type in ("llama", "qwen2")
    layer = "score" if scores else "classifier"
    views = (View(f"{layer}.weight", "head/table"), View(f"{layer}.bias", "head/bias"))
    lacks = task == "token_classification" and not config.output.bias
    bias = (f"{layer}.bias", len(labels)) if lacks else None
    return TaskHead(name, family.prefix, views, bias, settings)


def _check_same_function(config: Config, family: Family, name: str) -> None:
    task = config.task.name
    wanted = "squared" if task == "regression" else "softmax"
    for key, value in (("head", wanted), ("cap", None), ("temperature", None)):
        if (own := config.output[key]) != value:
            raise UserError(f"{name} has no config.output.{key} = {own!r}, only {value!r}")
    if task in ("token_classification", "extractive_qa"):
        return
    pooling = config.task.pooling
    if family.model_type in _POOLERS:
        if pooling != (wanted := _POOLERS[family.model_type][0]):
            raise UserError(
                f"{name} has a layer between the first state and its matrix, which "
                f"config.task.pooling = {pooling!r} has not; train with {wanted!r}"
            )
        return
    if pooling != "last":
        raise UserError(
            f"{name} reads the last token's state, and config.task.pooling is {pooling!r}; train "
            "with 'last'"
        )
    if config.output.bias:
        raise UserError(f"{name} has no bias; train with config.output.bias=False")


def body_prefix(family: Family, architecture: str) -> str:
    """How the names of the body's tensors begin in checkpoints of a class of transformers."""
    older = family.model_type in ("llama", "qwen2") and architecture.endswith("QuestionAnswering")
    return "transformer." if older else family.prefix


def architecture_of(theirs: Mapping[str, Any]) -> str:
    """The class that a config.json names; "" where it names none."""
    named = theirs.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


class Refused(Exception):
    """Why a checkpoint's head is not taken."""


def own_views(
    config: Config,
    family: Family,
    theirs: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    labels: Sequence[str],
) -> tuple[View, ...]:
    """The head of a checkpoint that was fine-tuned for a config's task; () where it has none.

    Args:
      config: of a run whose head chooses among labels, or points.
      family: of the checkpoint.
      theirs: its config.json.
      tensors: by name, without the body's prefix.
      labels: of the task, in the order of their numbers.

    Raises:
      Refused: it has a head, which computes something else or has other labels.
    """
    own = architecture_of(theirs)
    if not own.endswith(tuple(_CLASSES.values())):
        return ()
    try:
        head = task_head(config, family, labels)
    except UserError as error:
        raise Refused(str(error)) from None
    if head.architecture != own:
        raise Refused(f"it is of {own}, and task {config.task.name} has a {head.architecture}")
    names = [view.theirs for view in head.views]
    biased = bool(config.output.bias) or config.task.name == "extractive_qa"
    if missing := [n for n in names if n not in tensors and (biased or not n.endswith("bias"))]:
        raise Refused(f"the checkpoint lacks {missing[0]}")
    if head.bias is not None and head.bias[0] in tensors and not biased:
        raise Refused(f"it has {head.bias[0]}; set config.output.bias=True to take it")
    if config.task.name != "extractive_qa":
        table = next(view.theirs for view in head.views if view.ours == "head/table")
        _check_labels(theirs, table, tensors[table].shape[0], labels, config.task.name)
    return head.views


def named_labels(theirs: Mapping[str, Any], where: str = "config.json") -> tuple[str, ...]:
    """The labels of a checkpoint's config.json, in the order of their numbers; those that it leaves
    to transformers are LABEL_0, LABEL_1, ...

    Raises:
      UserError: it numbers them otherwise than 0, 1, ...
    """
    said, count = theirs.get("id2label"), theirs.get("num_labels", 2)
    if said is None and isinstance(count, int):
        said = {i: f"LABEL_{i}" for i in range(count)}
    names = said if isinstance(said, Mapping) else {}
    numbered = {str(key): str(name) for key, name in names.items()}
    if not numbered or numbered.keys() != set(map(str, range(len(numbered)))):
        raise UserError(f"{where} has an id2label that does not name 0, 1, ...; mend it")
    return tuple(numbered[str(i)] for i in range(len(numbered)))


def _check_labels(
    theirs: Mapping[str, Any], table: str, size: int, labels: Sequence[str], task: str
) -> None:
    """Raises Refused where a checkpoint's labels are not ours, or its own files disagree."""
    try:
        said = named_labels(theirs)
    except UserError as error:
        raise Refused(str(error)) from None
    if len(said) != size:
        raise Refused(
            f"config.json says {len(said)} labels, but {table} has {size}; mend its id2label"
        )
    if task == "classification":  # as its examples write them: "True" is "true"
        said = tuple(map(class_name, said))
    if task == "regression" or said == tuple(labels):
        return
    if said == tuple(f"LABEL_{i}" for i in range(size)):
        if tuple(labels) != tuple(map(str, range(size))):
            raise Refused("its labels have no names but LABEL_0, ...; name them in its id2label")
    else:
        order = f"; set config.task.labels={said!r} to take it" if {*said} == {*labels} else ""
        raise Refused(f"its labels are {', '.join(said)}, and here {', '.join(labels)}{order}")
