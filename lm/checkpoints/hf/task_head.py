"""Maps the head of a fine-tuned task to the class of transformers that computes the same of hidden
states; where that class has another layer in between, it says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.tensor_mapping import Tensor, TensorMapping, head_table, linear
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
_UNPREFIXED = ("classifier", "pre_classifier", "score", "qa_outputs")  # not in the body


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """A head as transformers has it.

    Attributes:
      architecture: the class.
      prefix: of the names of the body's tensors.
      mappings: the parameters as its tensors.
      bias: the tensor of zeros that the class has and the model lacks, and its size.
      settings: of config.json.
    """

    architecture: str
    prefix: str
    mappings: tuple[TensorMapping, ...]
    bias: tuple[str, int] | None
    settings: dict[str, Any]

    def full_name(self, tensor: str) -> str:
        """The name of a tensor in a checkpoint of the class."""
        own = {m.hf for m in self.mappings if m.hf.startswith(_UNPREFIXED)}
        return tensor if tensor.startswith(tuple(own)) else self.prefix + tensor


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
            f"config.task.name = {task!r}: transformers' classes for such a task have another "
            f"head; only {', '.join(_CLASSES)} are exported"
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
        mappings, bias = (TensorMapping("qa_outputs.weight", "read/query"),), ("qa_outputs.bias", 2)
        return TaskHead(name, body_prefix(family, name), mappings, bias, settings)
    if task != "token_classification" and family.model_type in _POOLERS:
        _, dense, matrix = _POOLERS[family.model_type]
        mappings = (*linear(dense, "read/dense"), *head_table(matrix))
        bias = None if config.output.bias else (f"{matrix}.bias", len(numbers))
        return TaskHead(name, family.prefix, mappings, bias, settings)
    scores = task != "token_classification" or family.model_type in ("llama", "qwen2")
    layer = "score" if scores else "classifier"
    lacks = task == "token_classification" and not config.output.bias
    bias = (f"{layer}.bias", len(labels)) if lacks else None
    return TaskHead(name, family.prefix, head_table(layer), bias, settings)


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


def architecture_name(hf_config: Mapping[str, Any]) -> str:
    """The class that a config.json names; "" where it names none."""
    named = hf_config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


class HeadMismatch(Exception):
    """The reason why a checkpoint's head is not read."""


def head_mappings(
    config: Config,
    family: Family,
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    labels: Sequence[str],
) -> tuple[TensorMapping, ...]:
    """The head of a checkpoint that was fine-tuned for a config's task; () where it has none.

    Args:
      config: of a run whose head chooses among labels, or points.
      family: of the checkpoint.
      hf_config: its config.json.
      tensors: by name, without the body's prefix.
      labels: of the task, in the order of their numbers.

    Raises:
      HeadMismatch: it has a head, which computes something else or has other labels.
    """
    own = architecture_name(hf_config)
    if not own.endswith(tuple(_CLASSES.values())):
        return ()
    try:
        head = task_head(config, family, labels)
    except UserError as error:
        raise HeadMismatch(str(error)) from None
    if head.architecture != own:
        raise HeadMismatch(f"it is of {own}, and task {config.task.name} has a {head.architecture}")
    names = [m.hf for m in head.mappings]
    biased = bool(config.output.bias) or config.task.name == "extractive_qa"
    if missing := [n for n in names if n not in tensors and (biased or not n.endswith("bias"))]:
        raise HeadMismatch(f"the checkpoint lacks {missing[0]}")
    if head.bias is not None and head.bias[0] in tensors and not biased:
        raise HeadMismatch(f"it has {head.bias[0]}; set config.output.bias=True to take it")
    if config.task.name != "extractive_qa":
        table = next(m.hf for m in head.mappings if m.param == "head/table")
        _check_labels(hf_config, table, tensors[table].shape[0], labels, config.task.name)
    return head.mappings


def label_names(hf_config: Mapping[str, Any], where: str = "config.json") -> tuple[str, ...]:
    """The labels of a checkpoint's config.json, in the order of their numbers; those that it leaves
    to transformers are LABEL_0, LABEL_1, ...

    Raises:
      UserError: it numbers them otherwise than 0, 1, ...
    """
    names, count = hf_config.get("id2label"), hf_config.get("num_labels", 2)
    if names is None and isinstance(count, int):
        names = {i: f"LABEL_{i}" for i in range(count)}
    names = names if isinstance(names, Mapping) else {}
    numbered = {str(key): str(name) for key, name in names.items()}
    if not numbered or numbered.keys() != set(map(str, range(len(numbered)))):
        raise UserError(f"{where} has an id2label that does not name 0, 1, ...; mend it")
    return tuple(numbered[str(i)] for i in range(len(numbered)))


def _check_labels(
    hf_config: Mapping[str, Any], table: str, size: int, labels: Sequence[str], task: str
) -> None:
    """Raises HeadMismatch where a checkpoint's labels are not the task's, or its files disagree."""
    try:
        names = label_names(hf_config)
    except UserError as error:
        raise HeadMismatch(str(error)) from None
    if len(names) != size:
        raise HeadMismatch(
            f"config.json says {len(names)} labels, but {table} has {size}; mend its id2label"
        )
    if task == "classification":  # as its examples write them: "True" is "true"
        names = tuple(map(class_name, names))
    if task == "regression" or names == tuple(labels):
        return
    if names == tuple(f"LABEL_{i}" for i in range(size)):
        if list(labels) != [str(i) for i in range(size)]:
            reason = "its labels have no names but LABEL_0, ...; name them in its id2label"
            raise HeadMismatch(reason)
    else:
        order = f"; set config.task.labels={names!r} to take it" if {*names} == {*labels} else ""
        raise HeadMismatch(
            f"its labels are {', '.join(names)}, and here {', '.join(labels)}{order}"
        )
