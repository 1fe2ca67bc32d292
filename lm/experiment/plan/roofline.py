"""Plans a config on a slice: what its compiled steps take, and the time that a training step cannot
go below.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax

from lm.config import Config
from lm.devices.slices import Slice
from lm.experiment.plan.collectives import Collective, collectives
from lm.experiment.plan.compile import (
    CompiledStep,
    DoesNotFit,
    compile_eval_step,
    compile_train_step,
)
from lm.experiment.plan.describe import describe_program
from lm.experiment.plan.hlo import read_module
from lm.experiment.plan.traffic import memory_bytes, opaque_kernels, product_flops
from lm.finetuning import param_count
from lm.training.profiling.flops import flops_per_token
from lm.training.profiling.memory import device_memory, state_and_gradient_bytes
from lm.training.profiling.paths import describe_paths


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the compilers of a slice say of a config.

    Attributes:
      config: with a number of steps.
      slice: the devices.
      memory: bytes of each that programs may take.
      mesh: axes and sizes.
      num_params: of the model, and how many of them are trained.
      train, evaluation: the compiled steps.
      model_flops: of a training step on one device: three times the products of the forward pass.
      product_flops: of the compiled training step on one device, with what it computes again.
      opaque_kernels: calls in it whose arithmetic is not in `product_flops`.
      memory_bytes: that a device moves to and from its memory in a training step.
      collectives: of a training step.
      paths: how attention and the head are computed, as a run's log says it.
      unknown_loops: how many loops of it are counted once, as their trips are not known.
      assumed: what only the data would say.
    """

    config: Config
    slice: Slice
    memory: float
    mesh: Mapping[str, int]
    num_params: tuple[int, int]
    train: CompiledStep
    evaluation: CompiledStep
    model_flops: float
    product_flops: float
    opaque_kernels: int
    memory_bytes: float
    collectives: list[Collective]
    paths: str
    unknown_loops: int
    assumed: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """That a device must have: those of the larger step."""
        return max(self.train.memory.total, self.evaluation.memory.total)

    @property
    def times(self) -> dict[str, float]:
        """Seconds that a training step takes at least, by what takes them: arithmetic, memory and
        links; empty where nothing is known of the device.
        """
        if (device := self.slice.accelerator) is None:
            return {}
        flops = self.product_flops
        if self.opaque_kernels:
            flops = max(flops, self.model_flops)
        return {
            "arithmetic": flops / device.peak_flops,
            "memory": self.memory_bytes / device.bandwidth,
            "links": sum(each.sent for each in self.collectives) / device.link,
        }

    @property
    def seconds(self) -> float | None:
        """The roofline of a training step: the largest of `times`."""
        return max(self.times.values(), default=None)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs per second at the roofline, as a share of the peak; those that the compiled
        step spares, as of gradients of what is not trained, do not count.
        """
        if self.seconds is None or self.slice.accelerator is None:
            return None
        done = self.model_flops
        if not self.opaque_kernels:
            done = min(done, self.product_flops)
        return done / self.seconds / self.slice.accelerator.peak_flops


def memory_of(on: Slice) -> float:
    """Bytes of each device of a slice that programs may take."""
    if on.accelerator is not None:
        return on.accelerator.memory
    return device_memory(list(on.devices)) or math.inf


def make_plan(config: Config, on: Slice, memory: float | None = None) -> Plan:
    """Compiles the steps of a config for a slice.

    Args:
      config: every key.
      on: the slice.
      memory: bytes of a device; None: those of the accelerator, or a CPU's part of its host's.

    Raises:
      UserError: the config is impossible, or does not divide over the devices.
      DoesNotFit: it takes more than that memory.
    """
    if memory is None:
        memory = memory_of(on)
    config, program, assumed = describe_program(config, on.devices)
    if (least := state_and_gradient_bytes(program)) > memory:
        raise DoesNotFit(least)
    train = compile_train_step(program, config.batch_size)
    if train.memory.total > memory:
        raise DoesNotFit(train.memory.total)
    evaluation = compile_eval_step(program, config.batch_size, bool(config.task.name))
    if evaluation.memory.total > memory:
        raise DoesNotFit(evaluation.memory.total)
    rows = program.objective.abstract_rows(config.batch_size)
    with jax.set_mesh(program.mesh):
        paths = describe_paths(program)
    module = read_module(train.text)
    mesh = dict(program.mesh.shape)
    state = program.abstract_state
    return Plan(
        config,
        on,
        memory,
        mesh,
        (param_count(state.all_params), param_count(state.params)),
        train,
        evaluation,
        flops_per_token(program) * rows["segments"].size / len(on.devices),
        product_flops(module),
        opaque_kernels(module),
        memory_bytes(module),
        collectives(module, mesh),
        paths,
        module.unknown_loops,
        assumed,
    )
