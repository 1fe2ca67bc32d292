"""Reads checkpoints of Hugging Face transformers as initial parameters, and writes models as such.
`FAMILIES` has the kinds of checkpoints by model_type.

Adding a family is one module in this package and one entry in the table below: its config keys, and
the mappings of its tensors. The parity tests then compare it with transformers, in both directions.
"""

from lm.checkpoints.hf import checkpoint
from lm.checkpoints.hf.albert import ALBERT
from lm.checkpoints.hf.bart import BART
from lm.checkpoints.hf.bert import BERT, ELECTRA, ROBERTA
from lm.checkpoints.hf.checkpoint import Checkpoint, is_checkpoint
from lm.checkpoints.hf.checkpoint_writer import matching_family, write_checkpoint
from lm.checkpoints.hf.distilbert import DISTILBERT
from lm.checkpoints.hf.family import Family
from lm.checkpoints.hf.gpt2 import GPT2
from lm.checkpoints.hf.llama import LLAMA, QWEN2
from lm.checkpoints.hf.t5 import T5
from lm.config import Config

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BERT, ROBERTA, DISTILBERT, ALBERT, ELECTRA, GPT2, LLAMA, QWEN2, T5, BART)
}


def open_checkpoint(source: str) -> Checkpoint:
    """Opens "hf:FOLDER" or "hf:NAME", a repository of the hub; see `Checkpoint`."""
    return checkpoint.open_checkpoint(source, FAMILIES)


def with_checkpoint_model(config: Config) -> Config:
    """A config whose init_from names a checkpoint, with that model; any other unchanged."""
    if not is_checkpoint(config.init_from):
        return config
    return open_checkpoint(config.init_from).with_model(config)


def family_of(config: Config) -> Family:
    """The family of the checkpoint that a config starts from, else the first that matches its
    model.

    Raises:
      UserError: where transformers has no such model.
    """
    if is_checkpoint(config.init_from):
        return open_checkpoint(config.init_from).family
    return matching_family(config, FAMILIES, None)


__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "family_of",
    "matching_family",
    "is_checkpoint",
    "open_checkpoint",
    "with_checkpoint_model",
    "write_checkpoint",
]
