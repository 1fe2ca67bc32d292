"""Imports optional libraries of the extra `finetune` where they are used."""

import importlib
from typing import Any

from lm.errors import UserError


def library(name: str) -> Any:
    """A module of a library of the extra finetune; UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the metrics of fine-tuning tasks need {error.name or name}: "
            'pip install -e ".[finetune]"'
        ) from None
