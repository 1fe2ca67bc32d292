"""Trains runs that differ only in the seed together, in one program on one device, each in a
workdir of its own.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from lm.config import Config
from lm.devices.hosts import process_count
from lm.errors import UserError
from lm.experiment.run import Run
from lm.experiment.run_dir import held
from lm.experiment.train import check_surroundings, opened
from lm.training.build_model import check_devices
from lm.training.preemption import Signals
from lm.training.replicas import Replica, Replicas

# Trackers that have one run of a process at a time.
_ONE_RUN = ("wandb", "trackio")

_Outcomes = dict[int, dict[str, Any] | Exception]


class Replication(NamedTuple):
    """How many runs are trained in one program, and how they are computed there, one of
    `lm.training.replicas.REPLICATE`.
    """

    number: int = 1
    replicate: str = "map"


ALONE = Replication()


class RunOf(NamedTuple):
    """A run to train: its config, its workdir, and what the progress bar calls it."""

    config: Config
    workdir: epath.Path
    label: str


def check_replication(replication: Replication) -> None:
    """Raises UserError where several processes would train replicas."""
    if replication.number > 1 and process_count() > 1:
        raise UserError(
            f"--replicas={replication.number} trains on one device, and this command runs in "
            f"{process_count()} processes; leave out one of them"
        )


def why_alone(config: Config) -> str | None:
    """Why runs of a config are trained one at a time; None where they can be replicas."""
    alarm = config.alarm
    if config.continual.sources:
        return "config.continual.sources makes it a chain of runs"
    if alarm.policy == "rollback" and (alarm.loss_spike or alarm.grad_norm):
        return "config.alarm.policy = 'rollback' may take one seed back alone"
    if config.log.profile_steps:
        return "config.log.profile_steps traces one run at a time"
    for name in _ONE_RUN:
        if name in config.log.trackers:
            return f"config.log.trackers has {name}, which takes one run at a time"
    if (size := check_devices(config).size) > 1:
        return f"config.mesh is of {size} devices, and replicas are trained on one"
    return None


def train_replicas(runs: Sequence[RunOf], replicate: str) -> list[dict[str, Any] | Exception]:
    """Trains runs that are not finished to their ends, or goes on with them.

    One that fails does not stop the others. After SIGINT or SIGTERM all are saved.

    Args:
      runs: which differ only in the seed, and have been checked; for none of them there is a reason
        in `why_alone`.
      replicate: how they are computed; see `lm.training.replicas.REPLICATE`.

    Returns:
      For each what result.json holds, or with what it has ended; see `train`.
    """
    outcomes: _Outcomes = {}
    open_runs: dict[int, Run] = {}
    signals = Signals()
    with contextlib.ExitStack() as stack:
        for index, each in enumerate(runs):
            try:
                opening = _open(each, signals, functools.partial(outcomes.get, index))
                open_runs[index] = stack.enter_context(opening)
            except Exception as error:
                outcomes[index] = error
        with signals:
            try:
                _fit(open_runs, replicate, outcomes)
            except Exception as error:  # of the program that all share, such as too little memory
                outcomes |= {index: error for index in open_runs if index not in outcomes}
            finally:
                for run in open_runs.values():
                    run.close()
    return [outcomes[index] for index in range(len(runs))]


@contextlib.contextmanager
def _open(given: RunOf, signals: Signals, outcome: Callable[[], object]) -> Iterator[Run]:
    """Opens a run, whose attempt ends with the exception that is its `outcome`, if it is one."""
    check_surroundings(given.config)
    try:
        with held(given.workdir) as still_held, opened(*given, still_held, signals, Replica) as run:
            yield run
            if isinstance(error := outcome(), Exception):
                raise error
    except Exception as error:
        if error is not outcome():
            raise


def _fit(runs: Mapping[int, Run], replicate: str, outcomes: _Outcomes) -> None:
    """Trains runs and adds how each has ended."""
    replicas = {
        run.trainer: index for index, run in runs.items() if isinstance(run.trainer, Replica)
    }
    if not replicas:
        return
    for replica, error in Replicas(list(replicas), replicate).fit():
        index = replicas[replica]
        try:
            outcomes[index] = error or runs[index].conclude()
        except Exception as failure:
            outcomes[index] = failure
