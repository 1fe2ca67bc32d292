"""Compiles the training step and the evaluation step of a program, and says what they take."""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from lm.devices import sharding
from lm.training.announce import announced
from lm.training.profiling.memory import bytes_per_device
from lm.training.program import Program


class Memory(NamedTuple):
    """Bytes on one device while a step runs.

    Attributes:
      parameters: those trained and those left alone, a moving average and a teacher.
      optimizer_state: of those trained.
      batch: the rows of one device, but for arrays of theirs that the step does not read.
      other: counters, keys, and what the device's layout adds to arrays.
      temporaries: activations, gradients and buffers.
      results: what is returned and overwrites no argument.
      program: the compiled code.
    """

    parameters: int
    optimizer_state: int
    batch: int
    other: int
    temporaries: int
    results: int
    program: int

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return sum(self)


class CompiledStep(NamedTuple):
    """A step that was compiled.

    Attributes:
      memory: of one device.
      text: the optimized HLO of one device.
      seconds: of tracing and compiling it.
    """

    memory: Memory
    text: str
    seconds: float


class DoesNotFit(Exception):
    """A compiler refused a step: it takes `bytes` of a device's memory, None where it says not."""

    def __init__(self, bytes: int | None):
        super().__init__(bytes)
        self.bytes = bytes


def compile_train_step(program: Program, batch_size: int) -> CompiledStep:
    """The training step of a program for a batch over all devices.

    Raises:
      DoesNotFit: the compiler refuses it for want of memory.
    """
    state, rows = program.abstract_state, _rows(program, batch_size)
    others = (state.ema_params, state.frozen_params, state.init_params, state.teacher)
    params = bytes_per_device((state.params, *others, state.importance))
    given = (params, bytes_per_device(state.opt_state), bytes_per_device(rows))
    return _compile(
        "the training step", program, given, program.train_step, state, rows, _key(program)
    )


def compile_eval_step(program: Program, batch_size: int, task: bool) -> CompiledStep:
    """The evaluation step: likelihoods of text, or predictions of a task.

    Raises:
      DoesNotFit: the compiler refuses it for want of memory.
    """
    params, rows = program.abstract_state.eval_params, _rows(program, batch_size)
    given = (bytes_per_device(params), 0, bytes_per_device(rows))
    step = program.predict if task else program.eval_step
    return _compile("the evaluation step", program, given, step, params, rows)


def _compile(
    what: str, program: Program, given: tuple[int, int, int], step: Any, *arguments: Any
) -> CompiledStep:
    begun = time.perf_counter()
    with announced(f"compiling {what}"), jax.set_mesh(program.mesh), _refusal():
        compiled = step.lower(*arguments).compile()
    seconds, found = time.perf_counter() - begun, compiled.memory_analysis()
    params, opt_state, batch = given
    other = found.argument_size_in_bytes - sum(given)
    memory = Memory(
        params,
        opt_state,
        batch + min(0, other),
        other=max(0, other),
        temporaries=found.temp_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )
    return CompiledStep(memory, compiled.as_text(), seconds)


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    """Turns a compiler's report that memory is used up into `DoesNotFit`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in (text := str(error)):
            raise
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", text)
        scale = {unit: 2 ** (10 * power) for power, unit in enumerate("KMGT", 1)}
        raise DoesNotFit(used and int(float(used[1]) * scale[used[2]])) from None


def _rows(program: Program, batch_size: int) -> Any:
    split = sharding.batch_sharding(program.mesh)
    abstract = program.objective.abstract_rows(batch_size)
    return jax.tree.map(lambda x: x.update(sharding=split), abstract)


def _key(program: Program) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    return key.update(sharding=sharding.whole(program.mesh))
