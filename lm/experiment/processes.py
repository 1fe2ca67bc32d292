"""Runs a command, alone or as one of several processes that do the same."""

from collections.abc import Callable, Mapping
from typing import Any

from lm.config import Config, flatten, to_dict
from lm.experiment.command_line import Command
from lm.experiment.provenance import commit, versions

_PLACE = ("coordinator", "num_processes", "process_id")


def run_command(
    name: str,
    command: Command,
    flags: Mapping[str, Any],
    config: Callable[[], Config],
    report: Callable[[BaseException], int],
) -> int:
    """The status of a command.

    Args:
      name, command: which one.
      flags: the values of all flags by name.
      config: makes the config, where the flag "config" is given.
      report: see `hosts.together`.

    Raises:
      UserError: where flags, configs or versions of several processes differ.
    """
    if not command.computes:
        return command.run()
    from lm.devices import hosts  # which import jax
    from lm.devices.cpu import keep_freed_memory

    keep_freed_memory()
    cluster = None
    if command.reads("coordinator"):
        cluster = hosts.find_cluster(*(flags[each] for each in _PLACE))
    if cluster is None:
        return command.run()
    with hosts.together(cluster, report):
        hosts.check_alike(_described(name, flags, config))
        return command.run()


def _described(name: str, flags: Mapping[str, Any], config: Callable[[], Config]) -> dict[str, str]:
    """What is the same in all processes: the command, its flags, its config and the versions."""
    others = {f"--{key}": value for key, value in flags.items() if key not in ("config", *_PLACE)}
    keys = flatten(to_dict(config())) if flags["config"] is not None else {}
    values = {"the command": name, **others, **{f"config.{key}": keys[key] for key in keys}}
    described = {key: repr(value) for key, value in values.items()}
    return described | {"version": f"{commit()} {versions()}"}
