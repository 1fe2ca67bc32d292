"""What `plan` prints of a config on a slice."""

from collections.abc import Iterable, Iterator

import jax

from lm.config import Config, load
from lm.devices.slices import Slice, open_slice
from lm.errors import UserError
from lm.experiment.ablation import load_ablation, make_points
from lm.experiment.ablation.variation import UNVARIED, Variation
from lm.experiment.plan.ablation import ablation_lines
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.mesh_search import search_meshes
from lm.experiment.plan.remedy import as_flags, find_remedy
from lm.experiment.plan.report import best_mesh_line, plan_lines, size_of, tried_line
from lm.experiment.plan.roofline import make_plan, memory_of


def plan_file(
    config: Config, name: str, on: str, variation: Variation = UNVARIED, given: Iterable[str] = ()
) -> Iterator[str]:
    """The lines of a config's plan on a slice; of a file with an ablation of several rows, those of
    its rows.

    Args:
      config: of the file, with what the command line sets.
      name: FILE[:ARG].
      on: the name of the slice.
      variation: what the command line makes of the file's ablation.
      given: the dotted keys that the command line sets.

    Raises:
      UserError: there is no such slice, or the config does not fit; says what would make it fit.
    """
    path, _, arg = name.partition(":")
    if hasattr(load(path), "sweep") or variation.is_given:
        ablation = load_ablation(path, arg or None, variation, given)
        if len(ablation.rows) > 1:
            slice_ = _open(on)
            points = make_points(config, ablation, "")
            yield f"{name} on {on}: {len(ablation.rows)} rows x {len(ablation.seeds)} seeds"
            yield from ablation_lines(points, slice_)
            return
    yield from plan_config(config, name, on)


def plan_config(config: Config, name: str, on: str, memory: float | None = None) -> Iterator[str]:
    """The lines of one config's plan, whatever the ablation of its file.

    Args:
      config, name, on: see `plan_file`.
      memory: bytes of a device; None: those of the accelerator.

    Raises:
      UserError: as `plan_file`.
    """
    slice_ = _open(on)
    try:
        yield from plan_lines(make_plan(config, slice_, memory), name)
    except DoesNotFit as error:
        raise UserError(_refusal(config, slice_, memory, error)) from None


def plan_meshes(config: Config, name: str, on: str) -> Iterator[str]:
    """The lines of a search over the meshes of a slice, each as it is compiled, and of the plan
    with the best.

    Raises:
      UserError: there is no such slice, or no mesh fits it.
    """
    found = []
    for tried in search_meshes(config, slice_ := _open(on)):
        yield tried_line(tried)
        found.append(tried)
    best = min((each for each in found if each.plan), default=None, key=lambda each: each.rank)
    if best is None or best.plan is None:
        raise UserError(f"no mesh of {slice_.name} fits: plan one alone to see what would")
    yield best_mesh_line(best)
    yield ""
    yield from plan_lines(best.plan, name)


def _open(on: str) -> Slice:
    """The slice; the accelerators of this machine are not started."""
    jax.config.update("jax_platforms", "cpu")
    return open_slice(on)


def _refusal(config: Config, on: Slice, memory: float | None, error: DoesNotFit) -> str:
    """That a config does not fit, and the changes that make it fit."""
    has = size_of(memory_of(on) if memory is None else memory)
    takes = "more than it has" if error.bytes is None else f"at least {size_of(error.bytes)}"
    what = f"does not fit {on.name}: a step takes {takes} of a device, which has {has}"
    remedy = find_remedy(config, on, memory)
    if remedy is None:
        return f"{what}; nothing that was tried makes it fit: take more devices or a smaller model"
    return f"{what}; this fits, in {size_of(remedy.plan.bytes)}: {as_flags(remedy.changes)}"
