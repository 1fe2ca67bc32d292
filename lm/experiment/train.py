"""Trains one experiment in its workdir, from the config to the result."""

from typing import Any

import jax
from etils import epath

from lm.checkpoints.init_params import check_init_from
from lm.checkpoints.teacher import teacher_config
from lm.config import Config
from lm.experiment.continuation import go_on
from lm.experiment.provenance import commit
from lm.experiment.run import Run
from lm.experiment.run_dir import attempted, claimed, held, open_workdir
from lm.experiment.validate import check
from lm.training.build_model import check_devices
from lm.training.prepare import corpus_program, prepare_corpus
from lm.training.profiling.memory import check_memory
from lm.training.trackers import check_trackers


def train(
    config: Config, workdir: epath.PathLike, label: str = "train", wait: bool = False
) -> dict[str, Any]:
    """Runs an experiment to its end, or goes on with it; a finished one is left as it is.

    Args:
      config: every key, as configs/default.py lists them.
      workdir: folder for everything the run writes; made where there is none.
      label: what the progress bar calls the run.
      wait: until another command that holds the workdir has ended.

    Returns:
      What result.json holds.

    Raises:
      UserError: where the config is impossible, or the workdir belongs to another one.
      Held: where another command is at work in the workdir.
      Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    check(config)
    workdir = epath.Path(workdir)
    if (finished := open_workdir(config, workdir)) is not None:
        return finished
    check_devices(config)
    check_trackers(config.log.trackers)
    check_init_from(config.init_from)
    with held(workdir, wait) as still_held:
        # Again: whom we have waited for may have finished it.
        if (finished := open_workdir(config, workdir)) is not None:
            return finished
        with attempted(workdir) as begins:
            dataset = prepare_corpus(config)
            go_on(config, workdir, dataset, label)
            program = corpus_program(config, dataset, teacher_config(config))
            check_memory(program)
            with jax.set_mesh(program.mesh):
                with claimed(config, workdir, dataset):
                    run = Run(config, workdir, dataset, program, label, still_held, commit())
                begins(run.trainer.first - 1)
                return run.finish()
