"""Reads the parameters that a run starts from: those of a checkpoint of transformers or of another
run, which `init_from` names, and those of an adapter.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.hf import is_checkpoint, open_checkpoint
from lm.checkpoints.layer_layout import layouts_differ, named_leaves, params_in_layout
from lm.checkpoints.peft import adapter_params
from lm.checkpoints.run_files import recorded_config
from lm.config import Config
from lm.devices import sharding
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.finetuning import method_names
from lm.training.program import Program


def check_init_from(init_from: str) -> None:
    """Raises UserError where there is nothing to start from at the place that `init_from` names."""
    if is_checkpoint(init_from):
        open_checkpoint(init_from)
    elif init_from:
        open_init_run(init_from).close()


def open_init_run(source: str) -> Checkpoints:
    """The checkpoints of the run that `init_from` names; UserError where there are none, or where
    they lack the parameters that it did not train.
    """
    folder = epath.Path(source) / "checkpoints"
    checkpoints = Checkpoints(source) if folder.exists() else None
    if checkpoints is None or checkpoints.latest is None:
        raise UserError(f"config.init_from = {source!r}: there is no checkpoint in {folder}")
    recorded = recorded_config(folder.parent / "config.json", strict=False)
    if "full" not in method_names(recorded):
        raise UserError(
            f"config.init_from = {source!r} keeps only what {recorded.finetuning.method} trained "
            f"of {recorded.init_from}; start from that, or from hf:FOLDER that "
            "export --output=FOLDER writes"
        )
    return checkpoints


def read_init_params(
    program: Program, config: Config, replaced: Mapping[str, jax.Array] | None = None
) -> tuple[dict[str, jax.Array], str]:
    """By path, the parameters that `init_from` names and those of `finetuning.adapter_from`; and
    what these are.

    A checkpoint's are read one by one, each after the `replaced` array of its name was deleted.
    """
    read = _read_checkpoint if is_checkpoint(config.init_from) else _read_run
    params, source = read(program, config, replaced or {})
    if not config.finetuning.adapter_from:
        return params, source
    abstract = named_leaves(_abstract_params(program))
    for name, value in adapter_params(config).items():
        params[name] = jax.device_put(value, abstract[name].sharding)
    return params, f"{source} with {config.finetuning.adapter_from}"


def pretrained_params(program: Program, config: Config, key: jax.Array) -> tuple[Any, str]:
    """All parameters of the model that `init_from` names, without a training state, and a line on
    where they came from. Those that it lacks are new ones of `key`.
    """
    abstract = _abstract_params(program)
    params, source = read_init_params(program, config)
    leaves = named_leaves(abstract).items()
    missing = {name: leaf.sharding for name, leaf in leaves if name not in params}

    def new_params() -> dict[str, jax.Array]:
        named = named_leaves(program.init_state(key).all_params)
        return {name: named[name] for name in missing}

    # The compiler leaves out all but these.
    params |= jax.jit(new_params, out_shardings=missing)() if missing else {}
    whole = jax.tree_util.tree_map_with_path(lambda path, _: params[path_name(path)], abstract)
    return whole, f"starts from {source}{describe_new(missing)}"


def describe_new(names: Iterable[str]) -> str:
    """Which parameters are new, once for all layers that have them: layer_* stands for each."""
    shown = dict.fromkeys(re.sub(r"/layer_\d+/", "/layer_*/", name) for name in names)
    return f"; fresh: {', '.join(shown)}" if shown else ""


def _read_run(
    program: Program, config: Config, replaced: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], str]:
    checkpoints = open_init_run(config.init_from)
    saved = checkpoints.load_raw(sharding.whole(program.mesh))
    checkpoints.close()
    return _eval_params(saved, program), f"{config.init_from} at step {int(saved['step'])}"


def _read_checkpoint(
    program: Program, config: Config, replaced: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], str]:
    checkpoint, labels = open_checkpoint(config.init_from), program.labels
    abstract = named_leaves(_abstract_params(program))
    found = checkpoint.find({name: x.shape for name, x in abstract.items()}, config, labels)
    params = {}
    for name, source in found.items():
        if name in replaced:
            replaced[name].delete()
        params[name] = checkpoint.read(source, abstract[name])
    return params, checkpoint.describe(found, config, labels)


def _abstract_params(program: Program) -> Any:
    """Shapes, types and shardings of all parameters."""
    params = program.abstract_params
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        params,
        sharding.tree_shardings(program.mesh, params, params),
    )


def _eval_params(saved: Mapping[str, Any], program: Program) -> dict[str, jax.Array]:
    """What evaluation uses of another run's state, by path in the program's layout."""
    params = saved["params"] if saved.get("ema_params") is None else saved["ema_params"]
    found, wanted = named_leaves(params), named_leaves(program.abstract_params)
    differ = layouts_differ(found.keys(), wanted.keys())
    return params_in_layout(found, wanted.keys()) if differ else found
