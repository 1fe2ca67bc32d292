"""From where does a run start? The order of starting points: resume, init_from, scratch."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.hf import is_checkpoint, open_checkpoint
from lm.checkpoints.layer_layout import found_in, lies_otherwise
from lm.checkpoints.origin import check_origin, record_origin
from lm.checkpoints.peft import adapter_params
from lm.checkpoints.run_files import recorded_config
from lm.config import Config
from lm.devices import sharding
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.finetuning import method_names, partition
from lm.finetuning.method import HEADS
from lm.training.train_state import TrainState
from lm.training.train_step import Program

# In a workdir: the run whose parameters it began with, and their hash.
BASE = "base.json"


def starting_state(
    program: Program, checkpoints: Checkpoints, config: Config, key: jax.Array
) -> tuple[TrainState, str]:
    """The state from which a run starts, and a line that says where it came from.

    The order: the newest checkpoint of this run (resume), the parameters of the checkpoint of
    transformers or of the run that `init_from` names, and else new initial weights.
    """
    file = checkpoints.folder.parent / BASE
    if checkpoints.latest is not None:
        state = restored_state(program, checkpoints, config)
        if program.abstract_state.init_params is not None:
            begun, _ = _begun(program, config, key, functools.partial(check_origin, file))
            state = dataclasses.replace(state, init_params=begun.init_params)
        return state, f"resumes at step {int(state.step)}"
    return _begun(program, config, key, functools.partial(record_origin, file))


def _begun(
    program: Program, config: Config, key: jax.Array, hold: Callable[..., None]
) -> tuple[TrainState, str]:
    """The state before the first step. `hold(origin, arrays)` records its base, or checks it."""
    state = program.init_state(key)
    if not config.init_from:
        return state, "starts from scratch"
    return _initialise_from(state, program, config, hold)


def restored_state(
    program: Program, checkpoints: Checkpoints, config: Config, step: int | None = None
) -> TrainState:
    """The state of a step (None: the newest), with what it left alone taken from its base.

    Raises:
      UserError: where checkpoint or base cannot be read, or the base is not the same any more.
    """
    state = checkpoints.load(program.abstract_state.saved, step)
    if not jax.tree.leaves(program.abstract_state.frozen_params):
        return state.replace(frozen_params={})
    base, origin = _base_params(program, config)
    check_origin(checkpoints.folder.parent / BASE, origin, base)

    def of_base(path: Any, leaf: Any) -> jax.Array:
        value = base[jax.tree_util.keystr(path)][: leaf.shape[0] if leaf.shape else None]
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    frozen = jax.tree_util.tree_map_with_path(of_base, program.abstract_state.frozen_params)
    return state.replace(frozen_params=frozen)


def pretrained_params(program: Program, config: Config, key: jax.Array) -> tuple[Any, str]:
    """All parameters of the model that `init_from` names, without a training state, and a line on
    where they came from. Those that it lacks are new ones of `key`.
    """
    whole = _sharded(program)
    base, origin = _base_params(program, config)
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    missing = {name: leaf.sharding for name, leaf in _named(leaves) if name not in base}

    def fresh() -> dict[str, jax.Array]:
        leaves = jax.tree_util.tree_leaves_with_path(program.init_state(key).all_params)
        return {name: leaf for name, leaf in _named(leaves) if name in missing}

    # The compiler leaves out all but these.
    base |= jax.jit(fresh, out_shardings=missing)() if missing else {}
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: base[jax.tree_util.keystr(path)], whole
    )
    return params, f"starts from {origin}{_told(missing)}"


def check_donor(init_from: str) -> None:
    """Raises UserError where there is nothing to start from at the place that `init_from` names."""
    if is_checkpoint(init_from):
        open_checkpoint(init_from)
    elif init_from:
        open_donor(init_from).close()


def open_donor(source: str) -> Checkpoints:
    """The checkpoints of the run that `init_from` names; UserError where there are none, or where
    they lack what that run left alone.
    """
    folder = epath.Path(source) / "checkpoints"
    donor = Checkpoints(source) if folder.exists() else None
    if donor is None or donor.latest is None:
        raise UserError(f"config.init_from = {source!r}: there is no checkpoint in {folder}")
    theirs = recorded_config(folder.parent / "config.json", complete=False)
    if "full" not in method_names(theirs):
        raise UserError(
            f"config.init_from = {source!r} keeps only what {theirs.finetuning.method} trained of "
            f"{theirs.init_from}; start from that, or from hf:FOLDER that "
            "export --output=FOLDER writes"
        )
    return donor


def _initialise_from(
    state: TrainState, program: Program, config: Config, hold: Callable[..., None]
) -> tuple[TrainState, str]:
    source, whole = config.init_from, state.all_params
    leaves = jax.tree_util.tree_leaves_with_path(whole)
    places = {name: leaf.sharding for name, leaf in _named(leaves)}
    base, origin = _base_params(program, config, dict(_named(leaves)))
    taken, fresh = {}, {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        value = base.get(name)
        if value is not None and value.shape == leaf.shape:
            taken[name] = jax.device_put(value.astype(leaf.dtype), places[name])
        else:
            fresh[name] = tuple(key.key for key in path)
    if not taken:
        raise UserError(f"config.init_from = {source!r}: no parameter has the same name and shape")
    _check_frozen(program, source, list(fresh.values()))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: taken.get(jax.tree_util.keystr(path), leaf), whole
    )
    params, frozen = partition(params, program.finetuning.frozen_layers)
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
        frozen_params=frozen,
        init_params=init_params,
    )
    hold(origin, base)
    return state, f"starts from {origin}{_told(fresh)}"


def _told(fresh: Mapping[str, Any]) -> str:
    """What is new, once for all layers that have it: layer_* stands for each of them."""
    names = [name.strip("[']").replace("']['", "/") for name in fresh]
    names = dict.fromkeys(re.sub(r"/layer_\d+/", "/layer_*/", name) for name in names)
    return f"; fresh: {', '.join(names)}" if names else ""


def _base_params(
    program: Program, config: Config, outgoing: Mapping[str, jax.Array] | None = None
) -> tuple[dict[str, jax.Array], str]:
    """What `init_from` names, and what the adapter of `finetuning.adapter_from` adds; see
    `_base`.
    """
    base, origin = _base(program, config, outgoing)
    if not config.finetuning.adapter_from:
        return base, origin
    leaves = jax.tree_util.tree_leaves_with_path(_sharded(program))
    shardings = {
        path_name(path): (jax.tree_util.keystr(path), leaf.sharding) for path, leaf in leaves
    }
    for path, value in adapter_params(config).items():
        name, sharding = shardings[path]
        base[name] = jax.device_put(value, sharding)
    return base, f"{origin} with {config.finetuning.adapter_from}"


def _base(
    program: Program, config: Config, outgoing: Mapping[str, jax.Array] | None = None
) -> tuple[dict[str, jax.Array], str]:
    """What `init_from` names, a run or a checkpoint of transformers: its parameters by key path,
    and what it is.

    A checkpoint's are read one by one, each after its `outgoing` namesake has left the memory.
    """
    if not is_checkpoint(config.init_from):
        donor = open_donor(config.init_from)
        raw = donor.load_raw(sharding.whole(program.mesh))
        donor.close()
        return _evaluated_params(raw, program), f"{config.init_from} at step {int(raw['step'])}"
    checkpoint = open_checkpoint(config.init_from)
    leaves = jax.tree_util.tree_leaves_with_path(_sharded(program))
    names = {path_name(path): jax.tree_util.keystr(path) for path, _ in leaves}
    labels = program.labels
    found = checkpoint.find({path_name(path): x.shape for path, x in leaves}, config, labels)
    base = {}
    for path, leaf in leaves:
        if (source := found.get(path_name(path))) is not None:
            name = names[path_name(path)]
            if outgoing is not None:
                outgoing[name].delete()
            base[name] = checkpoint.read(source, leaf)
    return base, checkpoint.describe(found, config, labels)


def _sharded(program: Program) -> Any:
    """Shapes, types and shardings of all parameters."""
    shardings = sharding.tree_shardings(
        program.mesh, program.abstract_params, program.abstract_params
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.abstract_params,
        shardings,
    )


def _named(leaves: list[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _check_frozen(program: Program, source: str, fresh: list[tuple[str, ...]]) -> None:
    """Raises UserError where a parameter would keep its random start: not given, not trained."""
    for path in fresh:
        if program.finetuning.frozen_layers(path) != 0:
            method = "+".join(program.finetuning.methods)
            remedy = f"; use {method}+head" if path[0] in HEADS else ""
            raise UserError(
                f"config.init_from = {source!r} has no {'/'.join(path)} of this shape, and "
                f"config.finetuning.method = {method!r} does not train it{remedy}"
            )


def _evaluated_params(raw: Any, program: Program) -> dict[str, Any]:
    """The evaluated parameters of another run's state by key path, their layers as the program's
    lie.
    """
    params = raw["params"] if raw.get("ema_params") is None else raw["ema_params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    own = jax.tree_util.tree_leaves_with_path(program.abstract_params)
    names = {path_name(path): jax.tree_util.keystr(path) for path, _ in own}
    saved = {path_name(path): leaf for path, leaf in leaves}
    if lies_otherwise(set(saved), set(names)):
        return {names[name]: leaf for name, leaf in found_in(saved, names).items()}
    return dict(_named(leaves))
