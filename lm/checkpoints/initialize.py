"""Makes the state from which a run starts. The order of starting points: the newest checkpoint of
the run itself, the parameters that `init_from` names, new initial weights.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.checksum import check_source, record_source
from lm.checkpoints.init_params import describe_new, read_init_params
from lm.checkpoints.layer_layout import named_leaves
from lm.config import Config
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.finetuning import partition
from lm.finetuning.method import HEADS
from lm.training.program import Program
from lm.training.train_state import TrainState

# In a workdir: what its run was initialised from, and the checksum of these parameters.
BASE = "base.json"


def starting_state(
    program: Program, checkpoints: Checkpoints, config: Config, key: jax.Array
) -> tuple[TrainState, str]:
    """The state from which a run starts, and a line that says where it came from."""
    file = checkpoints.folder.parent / BASE
    if checkpoints.latest is None:
        return _initial_state(program, config, key, functools.partial(record_source, file))
    state = restored_state(program, checkpoints, config)
    if program.abstract_state.init_params is not None:
        initial, _ = _initial_state(program, config, key, functools.partial(check_source, file))
        state = dataclasses.replace(state, init_params=initial.init_params)
    return state, f"resumes at step {int(state.step)}"


def restored_state(
    program: Program, checkpoints: Checkpoints, config: Config, step: int | None = None
) -> TrainState:
    """The state of a step (None: the newest), whose frozen parameters are read from `init_from`.

    Raises:
      UserError: where these or the checkpoint cannot be read, or these have changed.
    """
    state = checkpoints.load(program.abstract_state.saved, step)
    if not jax.tree.leaves(program.abstract_state.frozen_params):
        return state.replace(frozen_params={})
    params, source = read_init_params(program, config)
    check_source(checkpoints.folder.parent / BASE, source, params)

    def frozen(path: Any, leaf: Any) -> jax.Array:
        value = params[path_name(path)][: leaf.shape[0] if leaf.shape else None]
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    abstract = program.abstract_state.frozen_params
    return state.replace(frozen_params=jax.tree_util.tree_map_with_path(frozen, abstract))


def _initial_state(
    program: Program, config: Config, key: jax.Array, hold: Callable[..., None]
) -> tuple[TrainState, str]:
    """The state before the first step; `hold(source, arrays)` records or checks what was read."""
    state = program.init_state(key)
    if not config.init_from:
        return state, "starts from scratch"
    whole = state.all_params
    arrays = named_leaves(whole)
    shardings = {name: leaf.sharding for name, leaf in arrays.items()}
    read, source = read_init_params(program, config, arrays)
    taken = {
        name: jax.device_put(read[name].astype(leaf.dtype), shardings[name])
        for name, leaf in arrays.items()
        if name in read and read[name].shape == leaf.shape
    }
    if not taken:
        raise UserError(
            f"config.init_from = {config.init_from!r}: no parameter has the same name and shape"
        )
    new = [name for name in arrays if name not in taken]
    _check_trained(program, config, new)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: taken.get(path_name(path), leaf), whole
    )
    params, frozen_params = partition(params, program.config.finetuning.frozen_layers)
    ema_params, init_params = (
        None if tree is None else jax.tree.map(lambda x, t: x.copy().astype(t.dtype), params, tree)
        for tree in (state.ema_params, state.init_params)
    )
    # Those of the initial weights leave first: pruning's are as large as the parameters.
    jax.tree.map(lambda x: x.delete(), state.opt_state)
    state = dataclasses.replace(
        state,
        params=params,
        opt_state=program.init_opt_state(params),
        ema_params=ema_params,
        frozen_params=frozen_params,
        init_params=init_params,
    )
    hold(source, read)
    return state, f"starts from {source}{describe_new(new)}"


def _check_trained(program: Program, config: Config, new: list[str]) -> None:
    """Raises UserError where a new parameter keeps its random values: not given, not trained."""
    for name in new:
        path = tuple(name.split("/"))
        if program.config.finetuning.frozen_layers(path) != 0:
            method = "+".join(program.config.finetuning.methods)
            remedy = f"; use {method}+head" if path[0] in HEADS else ""
            raise UserError(
                f"config.init_from = {config.init_from!r} has no {name} of this shape, and "
                f"config.finetuning.method = {method!r} does not train it{remedy}"
            )
