"""Claims that another holds."""

import contextlib
import contextvars
import json

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


def write_claim(folder, number=1, **changes):
    """A claim as another process has left it."""
    with claim(folder):
        (path,) = folder.glob(".claim-*")
        record = json.loads(path.read_text())
    path = folder / f".claim-{number}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record | {"token": "theirs"} | changes))
    return path
