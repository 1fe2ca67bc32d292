"""Trains one experiment in its workdir, from the config to the result."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from lm.checkpoints.init_params import check_init_from
from lm.checkpoints.teacher import teacher_config
from lm.config import Config
from lm.evaluation.held_out import held_out_text
from lm.experiment.continuation import go_on
from lm.experiment.provenance import commit
from lm.experiment.run import Run
from lm.experiment.run_dir import attempted, claimed, held, open_workdir
from lm.experiment.validate import check
from lm.training.build_model import check_devices
from lm.training.preemption import Signals
from lm.training.prepare import corpus_program, prepare_corpus
from lm.training.profiling.memory import check_memory
from lm.training.trackers import check_trackers
from lm.training.trainer import Trainer


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
    check_surroundings(config)
    with held(workdir, wait) as still_held:
        # Again: whom we have waited for may have finished it.
        if (finished := open_workdir(config, workdir)) is not None:
            return finished
        with opened(config, workdir, label, still_held) as run:
            return run.finish()


def check_surroundings(config: Config) -> None:
    """Raises UserError where the machine lacks what a config asks for: the devices of its mesh, the
    packages of its trackers, the model that it starts from.
    """
    check_devices(config)
    check_trackers(config.log.trackers)
    check_init_from(config.init_from)


@contextlib.contextmanager
def opened(
    config: Config,
    workdir: epath.Path,
    label: str,
    still_held: Callable[[], None],
    signals: Signals | None = None,
    trainer: type[Trainer] = Trainer,
) -> Iterator[Run]:
    """Opens a run in a workdir that this command holds, to be trained in the block, whose end is
    recorded as that of the attempt. The arguments are those of `Run`.

    Raises:
      UserError: as `train`.
    """
    with attempted(workdir) as begins:
        dataset = prepare_corpus(config)
        held_out_text(dataset, config)  # raises where it has not enough, before it is trained on
        go_on(config, workdir, dataset, label)
        program = corpus_program(config, dataset, teacher_config(config))
        check_memory(program)
        with jax.set_mesh(program.mesh):
            with claimed(config, workdir, dataset):
                own = still_held, commit(), signals, trainer
                run = Run(config, workdir, dataset, program, label, *own)
            begins(run.trainer.first - 1)
            yield run
