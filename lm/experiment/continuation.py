"""Goes on with a run under a config that differs from the one with which it began."""

from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.resume import check_length, record_changes
from lm.checkpoints.run_files import check_same_text, recorded_config
from lm.config import Config
from lm.data import Dataset
from lm.devices.hosts import from_main
from lm.training.prepare import total_steps


def go_on(config: Config, workdir: epath.Path, corpus: Dataset, label: str) -> None:
    """Makes a config the run's own, and prints what has changed since the run began; of several
    processes, the first does.

    Raises:
      UserError: where text or learning rates are not those that the run has had.
    """
    done = Checkpoints(workdir).latest or 0
    from_main(lambda: _go_on(config, workdir, corpus, label, done))


def _go_on(config: Config, workdir: epath.Path, corpus: Dataset, label: str, done: int) -> None:
    if not (workdir / "data.json").exists():
        return
    check_same_text(workdir, corpus)
    recorded = recorded_config(workdir / "config.json")
    before, now = (total_steps(each, corpus) for each in (recorded, config))
    check_length(config, recorded, before, now, done)
    if changes := record_changes(config, recorded, workdir, done):
        print(f"{label}: {changes}", flush=True)
