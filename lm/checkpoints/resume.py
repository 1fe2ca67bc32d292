"""Holds under which conditions config keys may change when a run goes on, as they change no number
that it would have had, and the record of what was changed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lm.checkpoints.identity import identity
from lm.config import Config, to_dict, typed
from lm.data.files import to_json, write_json, write_text
from lm.errors import UserError
from lm.finetuning import method_names
from lm.training.config import resolve
from lm.training.metric_writer import read_metrics
from lm.training.optimizer import ScheduleConfig, schedule

LENGTH = ("steps", "epochs")
MEASURED_TEXT = ("evaluation.num_examples", "evaluation.num_bytes")

# In a workdir: one line for each time that a run went on with other settings.
CHANGES = "changes.jsonl"


def changed(config: Config, recorded: Config) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, of those that can change numbers: (before, now)."""
    now, before = identity(config), identity(recorded)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(now.keys() | before.keys())
        if before.get(key) != now.get(key)
    }


def check_changes(config: Config, recorded: Config, workdir: epath.Path) -> None:
    """Raises UserError where a key of `FREE` or `LENGTH` would change numbers after all."""
    for key, (before, now) in changed(config, recorded).items():
        if why := _objection(key, config, bool(before) != bool(now)):
            raise UserError(
                f"{workdir} cannot go on with config.{key} = {now!r} instead of {before!r}: {why}; "
                "use another --workdir, or that value"
            )


def _objection(key: str, config: Config, switched: bool) -> str:
    """Why a key may not change; `switched` is whether it goes to 0, or from there."""
    resized = key == "alarm.window" and config.alarm.loss_spike
    if resized or (key == "alarm.loss_spike" and switched):
        return "the last config.alarm.window losses are in the checkpoints, or are not"
    regularization = config.regularization
    if regularization.penalty_adaptation:
        follows = "config.regularization.penalty_adaptation follows"
        if key in ("evaluation.every", *MEASURED_TEXT):
            return f"{follows} what evaluations find"
        if key in LENGTH:
            return f"{follows} the evaluations, of which the last step has one"
    if key in LENGTH and regularization.sparsity:
        return "config.regularization.sparsity is spread over the steps"
    if key != "model.scan" or config.model.share_layers:
        return ""
    if config.optimizer.name == "adafactor":
        return "adafactor's means and clipping are those of stacked layers, or of single ones"
    if "full" not in method_names(config) or resolve(config).regularization.needs_init_params:
        return "the parameters with which training began, read again, are of the other layout"
    return ""


def check_length(config: Config, recorded: Config, before: int, now: int, done: int) -> None:
    """Raises UserError where a run of `now` steps would not have had the learning rates with which
    `done` steps of a run of `before` steps were made.
    """
    if before == now or not done:
        return
    if now < done:
        raise UserError(f"config.steps = {now}, but the run has made {done}; use at least as many")
    steps = jnp.arange(done)
    rates = [
        np.broadcast_to(jax.vmap(schedule(typed(ScheduleConfig, each, steps=length)))(steps), done)
        for each, length in ((recorded, before), (config, now))
    ]
    if (rates[0] != rates[1]).any():
        first = int(np.flatnonzero(rates[0] != rates[1])[0]) + 1
        raise UserError(
            f"a run of {before} steps cannot go on to {now}: by config.schedule.name = "
            f"{config.schedule.name!r} step {first} of the {done} that are made would have had "
            f"another learning rate; use {before}, or another --workdir"
        )


def record_changes(config: Config, recorded: Config, workdir: epath.Path, done: int) -> str:
    """Makes a config that of a workdir whose run is at step `done`; says what it changes.

    A result is taken away: the run is not finished any more.
    """
    changes = changed(config, recorded)
    if not changes:
        return ""
    (workdir / "result.json").unlink(missing_ok=True)
    file = workdir / CHANGES
    lines = file.read_text() if file.exists() else ""
    write_text(file, lines + to_json({"step": done, "changed": changes}) + "\n")
    write_json(workdir / "config.json", to_dict(config))
    shown = (f"{key} {before} -> {now}" for key, (before, now) in changes.items())
    return f"changed at step {done}: {', '.join(shown)}"


def asked_alike_since(workdir: epath.Path) -> int:
    """The step from which on evaluations were of the same held-out rows; -1: from the start."""
    records = read_metrics(workdir / CHANGES)
    steps = [each["step"] for each in records if {*MEASURED_TEXT} & each["changed"].keys()]
    return max(steps, default=-1)
