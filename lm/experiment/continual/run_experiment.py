"""Trains a run, or the chain of runs of config.continual, as `run.py train` and sweeps do."""

from typing import Any

from etils import epath

from lm.checkpoints.identity import FREE
from lm.checkpoints.init_params import check_init_from
from lm.checkpoints.resume import record_changes
from lm.checkpoints.run_files import read_result, recorded_config
from lm.checkpoints.teacher import teacher_config
from lm.config import Config
from lm.data.bucket import absolute
from lm.devices.hosts import from_main, is_main
from lm.experiment.continual.chain import TABLE, stage_configs, train_stages
from lm.experiment.primary_metric import summary
from lm.experiment.run_dir import attempted, claimed, held, open_workdir
from lm.experiment.train import train
from lm.experiment.validate import check
from lm.training.build_model import check_devices
from lm.training.prepare import corpus_program, prepare_corpus


def run_experiment(
    config: Config, workdir: epath.PathLike, label: str = "train", wait: bool = False
) -> dict[str, Any]:
    """Trains a run, or where config.continual.sources names several tasks, the chain of their runs.

    Like `train`, it continues an unfinished run and does nothing for a finished one.

    Returns:
      The content of result.json: for a chain, that of its last run, with the mean over tasks of the
      primary metric, "matrix", the metric by run and task (see
      `lm.experiment.continual.forgetting`), and `forgetting_metrics` of it; "steps" and "seconds"
      are totals over the runs.

    Raises:
      UserError, Interrupted: as `train`.
    """
    if not config.continual.sources or config.continual.stage:
        return train(config, workdir, label, wait)
    check(config)
    # Runs record the folder of the one before, so its path must be absolute.
    workdir = absolute(workdir)
    finished = open_workdir(config, workdir, FREE)
    if finished is None:
        check_devices(config)
        check_init_from(config.init_from)
        with held(workdir, wait):
            finished = open_workdir(config, workdir, FREE)
            if finished is None:
                with attempted(workdir):  # each of its runs records its own as well
                    finished = _train_chain(config, workdir, label)
    if is_main():
        print((workdir / TABLE).read_text(), flush=True)
    return finished


def _train_chain(config: Config, workdir: epath.Path, label: str) -> dict[str, Any]:
    corpus = prepare_corpus(config)
    recorded = workdir / "config.json"

    def go_on() -> None:
        if recorded.exists():  # its runs report their own changes
            record_changes(config, recorded_config(recorded), workdir, 0)

    from_main(go_on)
    with claimed(config, workdir, corpus):
        chain = stage_configs(config, workdir, corpus)
        corpus_program(chain[0], prepare_corpus(chain[0]), teacher_config(chain[0]))
    return train_stages(config, workdir, chain, corpus, label)


def train_and_report(config: Config, workdir: epath.Path, wait: bool = False) -> list[str]:
    """Runs `run_experiment` and describes its result in lines."""
    before = from_main(lambda: read_result(workdir))
    result = run_experiment(config, workdir, wait=wait)
    finished = result == before  # and not a run that continued to more steps
    first = [f"{workdir} is finished already; its result:"] if finished else []
    return [*first, f"eval: {summary(result, config)}"]
