"""What `plan` prints of a config on a slice."""

from collections.abc import Iterator

import jax

from lm.config import Config
from lm.devices.slices import Slice, open_slice
from lm.errors import UserError
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.mesh_search import search_meshes
from lm.experiment.plan.remedy import as_flags, find_remedy
from lm.experiment.plan.report import mesh_lines, plan_lines, size_of
from lm.experiment.plan.roofline import make_plan


def use_host_alone() -> None:
    """Keeps JAX from starting the accelerators of this machine, which a plan does not need."""
    jax.config.update("jax_platforms", "cpu")


def plan_config(config: Config, name: str, on: str, memory: float | None = None) -> Iterator[str]:
    """The lines of a config's plan on the slice of a name.

    Raises:
      UserError: there is no such slice, or the config does not fit; says what would make it fit.
    """
    use_host_alone()
    slice_ = open_slice(on)
    try:
        yield from plan_lines(make_plan(config, slice_, memory), name)
    except DoesNotFit as error:
        raise UserError(refusal(config, slice_, memory, error)) from None


def plan_meshes(config: Config, on: str) -> Iterator[str]:
    """The lines of a search over the meshes of a slice."""
    use_host_alone()
    yield from mesh_lines(search_meshes(config, open_slice(on), None, lambda _: None))


def refusal(config: Config, on: Slice, memory: float | None, error: DoesNotFit) -> str:
    """That a config does not fit, and the changes that make it fit."""
    known = on.accelerator.memory if memory is None and on.accelerator else memory
    has = f", which has {size_of(known)}" if known else ""
    takes = "more than it has" if error.bytes is None else f"at least {size_of(error.bytes)}"
    what = f"does not fit {on.name}: a step takes {takes} of a device{has}"
    remedy = find_remedy(config, on, memory)
    if remedy is None:
        return f"{what}; nothing that was tried makes it fit: take more devices or a smaller model"
    return f"{what}; this fits, in {size_of(remedy.plan.bytes)}: {as_flags(remedy.changes)}"
