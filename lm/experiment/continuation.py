"""Holds how long a run is, in updates, and how it goes on with other settings than at first."""

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.resume import check_length, record_changes
from lm.checkpoints.run_files import check_same_text, recorded_config
from lm.config import Config
from lm.data import Dataset
from lm.errors import UserError


def go_on(config: Config, workdir: epath.Path, corpus: Dataset, label: str) -> None:
    """Makes a config, which may differ from that with which a run began, the run's own, and says
    what is different.

    Raises:
      UserError: where text or learning rates are not those that the run has had.
    """
    if jax.process_index() or not (workdir / "data.json").exists():
        return
    check_same_text(workdir, corpus)
    recorded, done = recorded_config(workdir / "config.json"), Checkpoints(workdir).latest or 0
    before, now = (total_steps(each, corpus) for each in (recorded, config))
    check_length(config, recorded, before, now, done)
    if told := record_changes(config, recorded, workdir, done):
        print(f"{label}: {told}", flush=True)


def total_steps(config: Config, corpus: Dataset) -> int:
    """Updates in the whole run: config.steps, or what config.epochs makes of the training rows.

    Raises:
      UserError: where the warm-up is as long, or there are more updates than 32 bits count.
    """
    if config.epochs is None:
        return config.steps
    rows = corpus.manifest["splits"]["train"]["rows"]
    most = (2**31 - 1) * config.batch_size / rows
    if config.epochs > most:
        raise UserError(
            f"config.epochs = {config.epochs} over {rows} rows is more steps than 2147483647; use "
            f"fewer than {most:.3g} epochs"
        )
    steps = max(1, round(config.epochs * rows / config.batch_size))
    if config.schedule.warmup_steps >= steps:
        raise UserError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} must be below the "
            f"{steps} steps of "
            f"config.epochs = {config.epochs}; shorten the warm-up"
        )
    return steps
