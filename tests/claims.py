"""Claims that another holds."""

import contextlib
import contextvars

from lm.experiment.claim import claim


@contextlib.contextmanager
def held_elsewhere(folder):
    """By this process too, but as if it were another: blocks within do not share the claim."""
    other, stack = contextvars.Context(), contextlib.ExitStack()
    other.run(stack.enter_context, claim(folder))
    try:
        yield
    finally:
        other.run(stack.close)
