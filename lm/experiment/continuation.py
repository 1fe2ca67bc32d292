"""Goes on with a run under a config that differs from the one with which it began."""

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.resume import check_length, record_changes
from lm.checkpoints.run_files import check_same_text, recorded_config
from lm.config import Config
from lm.data import Dataset
from lm.training.prepare import total_steps


def go_on(config: Config, workdir: epath.Path, corpus: Dataset, label: str) -> None:
    """Makes a config the run's own, and prints what has changed since the run began.

    Raises:
      UserError: where text or learning rates are not those that the run has had.
    """
    if jax.process_index() or not (workdir / "data.json").exists():
        return
    check_same_text(workdir, corpus)
    recorded, done = recorded_config(workdir / "config.json"), Checkpoints(workdir).latest or 0
    before, now = (total_steps(each, corpus) for each in (recorded, config))
    check_length(config, recorded, before, now, done)
    if changes := record_changes(config, recorded, workdir, done):
        print(f"{label}: {changes}", flush=True)
