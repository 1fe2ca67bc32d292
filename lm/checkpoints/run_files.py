"""Reads the files of a workdir (config.json, data.json, result.json) and checks that a config and a
text are those of its run.
"""

from typing import Any

from etils import epath
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from lm.checkpoints.identity import is_incidental, reference_defaults
from lm.checkpoints.resume import changed
from lm.config import Config, check_types, declared, flatten, plain
from lm.data import Dataset
from lm.data.files import parse_json
from lm.errors import UserError
from lm.training.metric_writer import with_nan

# Without these a JSON object is no config of any version.
_EVERY_CONFIG_HAS = ("seed", "steps", "objective", "data.source", "optimizer.learning_rate")


def read_run_json(path: epath.Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file of a workdir, an object with texts under these dotted keys.

    Raises:
      UserError: where it is damaged, or something else.
    """
    remedy = "restore it, or use another folder"
    found = parse_json(path.read_bytes(), path, remedy)
    flat = flatten(found)
    if lacking := [key for key in keys if not isinstance(flat.get(key), str)]:
        raise UserError(f"{path} has no text {lacking[0]!r}; {remedy}")
    return found


def recorded_config(file: epath.Path, strict: bool = True) -> Config:
    """The config that a run's config.json holds. Keys that are newer than the file have their
    reference default.

    Args:
      file: the config.json.
      strict: a key that this code has not, which a version with other keys wrote, raises; but for
        those that never change numbers.

    Raises:
      UserError: where it is damaged, or a value has another type than its key.
    """
    try:
        flat = flatten(read_run_json(file))
        config = ConfigDict(unflatten_dict({**reference_defaults(), **flat}, sep="."))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} holds no config ({plain(error)}); restore it") from None
    if missing := [key for key in _EVERY_CONFIG_HAS if key not in flat]:
        raise UserError(f"{file} holds no config: it has no {missing[0]}; restore it")
    unknown = [key for key in flat if key not in declared() and not is_incidental(key)]
    if unknown and strict:
        raise UserError(
            f"{file} has {unknown[0]}, which is no config key: a version of this code with other "
            "keys wrote it; use that version, or train again in another --workdir"
        )
    try:
        check_types(config)
    except UserError as error:
        raise UserError(f"{file}: {error}; restore that file") from None
    return config


def read_result(workdir: epath.Path) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none, or an incomplete one, which is then
    derived again from the last checkpoint.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        found = read_run_json(path, "config_hash")
    except UserError:
        return None
    return with_nan(found) if {"steps", "seconds"} <= found.keys() else None


def check_same_config(
    config: Config, recorded: Config, workdir: epath.Path, ignored: tuple[str, ...] = ()
) -> None:
    """Raises UserError where a config would change the numbers of the run in a workdir.

    Keys and groups named in `ignored` may differ, and so may where it runs and what it prints.
    """
    for key, (before, now) in changed(config, recorded).items():
        if key not in ignored and key.split(".")[0] not in ignored:
            raise UserError(
                f"{workdir} belongs to another config: config.{key} is {before!r} there "
                f"and {now!r} here; use another --workdir, or that value"
            )


def check_same_text(workdir: epath.Path, corpus: Dataset) -> None:
    """Raises UserError where text or tokenizer are no longer those that a run began with."""
    before, now = read_run_json(workdir / "data.json", "hash", "tokenizer.hash"), corpus.manifest
    for name, current, recorded in (
        ("text", now["hash"], before["hash"]),
        ("tokenizer", now["tokenizer"]["hash"], before["tokenizer"]["hash"]),
    ):
        if current != recorded:
            raise UserError(
                f"{workdir} began with another {name} (hash {recorded[:12]}, now {current[:12]}); "
                f"restore that {name}, or use another --workdir"
            )
