"""Whose folder is this? A workdir belongs to one config and one text: it is claimed before a run
begins, and whoever comes with another is told so.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from itertools import filterfalse
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from lm.checkpoints.resume import FREE, LENGTH, changed, check_changes
from lm.config import Config, check_types, declared, flatten, plain, to_dict
from lm.data import Corpus
from lm.errors import UserError
from lm.experiment.claim import claim
from lm.tasks.prepare import TaskData
from lm.training.metric_writer import with_nan, write_json


def open_workdir(
    config: Config, workdir: epath.Path, free: tuple[str, ...] = FREE + LENGTH
) -> dict[str, Any] | None:
    """The result of a finished run of this config in this workdir; None where there is work to do.

    What is `free` may differ from the config with which the run began; where its length does, there
    is work to do.

    Raises:
      UserError: where the workdir holds something else.
    """
    recorded = workdir / "config.json"
    if not recorded.exists():
        if workdir.exists() and not _is_free(workdir):
            raise UserError(f"{workdir} is not empty and is no run's folder; use another --workdir")
        return None
    before = recorded_config(recorded)
    check_same_config(config, before, workdir, besides=free)
    check_changes(config, before, workdir)
    result, changes = read_result(workdir), changed(config, before)
    if result is None or any(key in changes for key in LENGTH):
        return None
    for key, (old, new) in changes.items():
        if key.startswith("evaluation."):
            otherwise = (
                "measure it by eval" if key == "evaluation.num_examples" else "another --workdir"
            )
            raise UserError(
                f"{workdir} is finished, with config.{key} = {old!r} instead of {new!r}; use that "
                f"value, or {otherwise}"
            )
    return result


def check_same_config(
    config: Config, recorded: Config, workdir: epath.Path, besides: tuple[str, ...] = ()
) -> None:
    """Raises UserError where a config would change the numbers of the run in a workdir.

    Keys and groups named in `besides` may differ, and so may where it runs and what it prints.
    """
    for key, (theirs, ours) in changed(config, recorded).items():
        if key not in besides and key.split(".")[0] not in besides:
            raise UserError(
                f"{workdir} belongs to another config: config.{key} is {theirs!r} there "
                f"and {ours!r} here; use another --workdir, or that value"
            )


def recorded_config(file: epath.Path, whole: bool = True) -> Config:
    """The config that a run's config.json holds.

    Args:
      file: the config.json.
      whole: every key is asked for; else an older version of this code may have written it, and the
        config lacks what that lacked.

    Raises:
      UserError: where it is damaged, or lacks a key, or a value has another type than its key.
    """
    try:
        config = ConfigDict(read_json(file))
        lacking = sorted(declared().keys() - flatten(config.to_dict()).keys())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} holds no config ({plain(error)}); restore it") from None
    try:
        check_types(config, besides=lacking)
    except UserError as error:
        raise UserError(f"{file}: {error}; restore that file") from None
    if lacking and whole:
        raise UserError(
            f"{file} has no {lacking[0]}: an older version of this code wrote it; use that "
            "version, or train again in another --workdir"
        )
    return config


def _is_free(workdir: epath.Path) -> bool:
    """Whether a run may begin in a folder."""
    return workdir.is_dir() and all(map(_is_remark, workdir.iterdir()))


def _is_remark(child: epath.Path) -> bool:
    """Whether a file says nothing of a run but, in a sweep's words, why it broke."""
    return child.name == "error.txt" or child.name.startswith(".")


def read_json(path: epath.Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file of a workdir, an object with texts under these dotted keys.

    Raises:
      UserError: where it is damaged, or something else.
    """
    remedy = "restore it, or use another folder"
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({plain(error)}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object; {remedy}")
    flat = flatten(found)
    if lacking := [key for key in keys if not isinstance(flat.get(key), str)]:
        raise UserError(f"{path} has no text {lacking[0]!r}; {remedy}")
    return found


def read_result(workdir: epath.Path) -> dict[str, Any] | None:
    """The result of a finished run; None where there is none, or not a whole one, which is then
    derived again from the last checkpoint.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    try:
        found = read_json(path, "config_hash")
    except UserError:
        return None
    return with_nan(found) if {"steps", "seconds"} <= found.keys() else None


@contextlib.contextmanager
def held(workdir: epath.Path, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Holds a workdir for one command at a time; of several processes of a run, the first does.

    Gives a function that raises where the workdir was taken over meanwhile; see
    `lm.experiment.claim`.
    """
    if jax.process_index():
        yield lambda: None
    else:
        with claim(workdir, wait) as mine:
            yield mine.check


@contextlib.contextmanager
def claimed(config: Config, workdir: epath.Path, corpus: Corpus | TaskData) -> Iterator[None]:
    """Writes what the run is made of before it begins; checks that its text is still the same.

    A user's mistake that is found inside lets go of the workdir again, where no run was in it.
    """
    recorded, main = workdir / "data.json", jax.process_index() == 0
    result = workdir / "result.json"
    if main and result.exists() and read_result(workdir) is None:
        print(f"{result} is not whole; it is derived again", file=sys.stderr, flush=True)
    free = not workdir.exists() or _is_free(workdir)
    if recorded.exists():
        check_same_text(workdir, corpus)
    elif main:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", to_dict(config))
        write_json(recorded, corpus.manifest)
    try:
        yield
    except UserError:
        if free and main:
            for child in filterfalse(_is_remark, workdir.iterdir()):
                child.rmtree() if child.is_dir() else child.unlink()
        raise


def check_same_text(workdir: epath.Path, corpus: Corpus | TaskData) -> None:
    """Raises UserError where text or tokenizer are no longer those that a run began with."""
    before, now = read_json(workdir / "data.json", "hash", "tokenizer.hash"), corpus.manifest
    for name, ours, theirs in (
        ("text", now["hash"], before["hash"]),
        ("tokenizer", now["tokenizer"]["hash"], before["tokenizer"]["hash"]),
    ):
        if ours != theirs:
            raise UserError(
                f"{workdir} began with another {name} (hash {theirs[:12]}, now {ours[:12]}); "
                f"restore that {name}, or use another --workdir"
            )
