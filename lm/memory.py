"""How much memory does an update take? What the compiler says of the program that makes it."""

from typing import Any

import jax

from lm.state import State
from lm.step import Program


def step_memory(program: Program, state: State, rows: Any, key: jax.Array) -> int | None:
    """Bytes of the compiled step on one device: its arguments and its temporaries.

    The arguments are parameters, optimizer state and rows, which the new state overwrites; the
    temporaries are gradients and activations. A step that has run with these arguments is not
    compiled again. None where the backend does not say.
    """
    found = program.step.lower(state, rows, key).compile().memory_analysis()
    return None if found is None else found.argument_size_in_bytes + found.temp_size_in_bytes
