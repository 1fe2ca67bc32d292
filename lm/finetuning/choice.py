"""Which parameters does a method train that adds none? Predicates over the names of their paths."""

from lm.config import Config
from lm.finetuning.method import Trains

HEADS = ("head", "transform", "pool", "read")


def everything(path: tuple[str, ...], config: Config) -> int | None:
    """All parameters: plain fine-tuning."""
    return 0


def head(path: tuple[str, ...], config: Config) -> int | None:
    """What reads the stack's hidden states: output head, transform, pooler, task's readout.

    A table that is tied to the embedding is the model's, and stays.
    """
    return 0 if path[0] in HEADS else None


def top_layers(path: tuple[str, ...], config: Config) -> int | None:
    """The last `finetuning.num_layers` blocks of every stack, its closing norm, and the head
    (1911.03090).

    Scanned layers are stacked in one array, of which the last are trained; its gradient is computed
    whole and the first part dropped.
    """
    if path[0] not in ("stack", "encoder"):
        return head(path, config)
    frozen = config.model.num_layers - (config.finetuning.num_layers or 1)
    if path[1] == "layers":
        return frozen
    if path[1].startswith("layer_"):
        return 0 if int(path[1].removeprefix("layer_")) >= frozen else None
    return 0


def biases(path: tuple[str, ...], config: Config) -> int | None:
    """Every bias, of matrices, norms and head (BitFit, 2106.10199)."""
    return 0 if path[-1] == "bias" and softmaxes(path, config) is None else None


def norms(path: tuple[str, ...], config: Config) -> int | None:
    """Scales and biases of the norms (2003.00152, for Transformers 2103.05247)."""
    return 0 if len(path) > 1 and path[-2].endswith("norm") else None


def softmaxes(path: tuple[str, ...], config: Config) -> int | None:
    """What the attention's own map from scores to weights has: alpha, scale, cap, sink, lambda."""
    return 0 if len(path) > 1 and path[-2] in ("mechanism", "scores") else None


def under(name: str) -> Trains:
    """The parameters of modules of this name, wherever a method has added them."""
    return lambda path, config: 0 if any(x.startswith(name) for x in path[:-1]) else None
