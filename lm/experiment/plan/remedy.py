"""Finds changes of a config that make it fit a slice, by trying them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lm.config import Config, flatten, override, to_dict
from lm.devices.slices import Slice
from lm.errors import UserError
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.roofline import Plan, make_plan

Changes = dict[str, Any]

# Queries and tokens at a time that take little memory and are still large products.
SMALL_CHUNKS = {"attention.query_chunk_size": 128, "output.token_chunk_size": 1024}


class Remedy(NamedTuple):
    """Changes that make a config fit, and the plan with them."""

    changes: Changes
    plan: Plan


def find_remedy(config: Config, on: Slice, memory: float | None = None) -> Remedy | None:
    """The first of `candidates` that fits; None: none of them does."""
    for changes in candidates(config, len(on.devices)):
        try:
            return Remedy(changes, make_plan(override(config, changes), on, memory))
        except (DoesNotFit, UserError):
            continue  # too large still, or a size that does not divide
    return None


def candidates(config: Config, devices: int) -> Iterator[Changes]:
    """Changes to try, from those that cost least: blocks recomputed, the state split over all
    devices, both, small chunks, the batch in more parts, and at last smaller batches.
    """
    remat = _changed(config, {"model.remat": True})
    split = _changed(config, {"mesh.data": 1, "mesh.fsdp": -1})
    chunks = _changed(config, SMALL_CHUNKS)
    tried = []
    for changes in (remat, split, remat | split, remat | split | chunks):
        if changes and changes not in tried:
            tried.append(changes)
            yield changes
    smallest = remat | split | chunks
    devices //= max(config.mesh.sequence, 1)
    shards = devices if split or config.mesh.tensor == 1 else devices // config.mesh.tensor
    parts = 2 * config.grad_accum_steps
    while config.batch_size % (parts * shards) == 0:
        yield smallest | {"grad_accum_steps": parts}
        parts *= 2
    size = config.batch_size // 2
    while size >= shards:
        yield smallest | {"batch_size": size, "grad_accum_steps": 1}
        size //= 2


def _changed(config: Config, values: Changes) -> Changes:
    """Those of the values that the config does not have."""
    given = flatten(to_dict(config))
    return {key: value for key, value in values.items() if given[key] != value}


def as_flags(changes: Changes) -> str:
    """The changes as they are written on the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
