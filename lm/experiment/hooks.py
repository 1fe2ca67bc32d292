"""Hooks of a run in its workdir: its evaluations with early stopping, and its checkpoints."""

from collections.abc import Callable
from typing import Any

from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.preservation import Preservation
from lm.checkpoints.resume import asked_alike_since
from lm.config import Config
from lm.data import Dataset
from lm.errors import Interrupted
from lm.evaluation.held_out import Evaluation, evaluate
from lm.experiment.primary_metric import PrimaryMetric, describe_metrics, primary_metric
from lm.training.early_stopping import Stopping
from lm.training.hooks import Log
from lm.training.metric_writer import read_metrics
from lm.training.preemption import Signals
from lm.training.regularization.generalization_gap import adapt_penalties
from lm.training.trainer import Hook, Step, Trainer


class Evaluate(Hook):
    """Evaluates on held-out rows, adapts penalties, and stops early if `stopping` is not None."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        checkpoints: Checkpoints,
        stopping: Stopping | None,
        log: Log,
        still_held: Callable[[], None],
    ):
        self.config, self.dataset, self.checkpoints = config, dataset, checkpoints
        self.stopping, self.log, self.still_held = stopping, log, still_held

    @property
    def done(self) -> bool:
        """Whether patience is at its end."""
        return self.stopping is not None and self.stopping.done

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Raises Held, before anything is written, where another command has the workdir now."""
        self.still_held()

    def is_due(self, trainer: Trainer, number: int) -> bool:
        """The last step is evaluated here where it may be the best; else once training is over."""
        last, every = number == trainer.num_steps, trainer.program.config.evaluation.every
        return last if last and self.stopping else bool(every and number % every == 0 and not last)

    def after_step(self, trainer: Trainer, number: int) -> None:
        """Where it is due."""
        if self.is_due(trainer, number):
            self.run(trainer, number)

    def measure(self, trainer: Trainer) -> Evaluation:
        """Evaluates the current parameters."""
        return evaluate(trainer.program, trainer.state.eval_params, self.dataset, self.config)

    def run(self, trainer: Trainer, number: int) -> Evaluation:
        """Evaluates the current parameters and writes the line."""
        try:
            found = self.measure(trainer)
        except Exception:
            # What was learned is not lost with what cannot be judged.
            self.checkpoints.save(trainer.state)
            raise
        self.still_held()  # as before every line; an evaluation may take long
        trainer.state, gap = adapt_penalties(trainer.state, trainer.program, self.dataset)
        if self.log.writer is not None:
            self.log.writer.write(number, found.metrics | gap)
            self.log.progress.evaluated(", ".join(describe_metrics(found.metrics, self.config)))
        if self.checkpoints.keep:
            self.checkpoints.keep.see(number, found.metrics)
        if self.stopping and self.stopping.see(number, found.metrics[self.stopping.metric]):
            self.checkpoints.protect(number)
        return found

    def return_to_best(self, trainer: Trainer) -> None:
        """Takes up the state of the best evaluation, and makes it the newest checkpoint."""
        assert self.stopping is not None
        best = self.stopping.best
        self.checkpoints.wait()
        if best is None:  # no evaluation was finite
            return
        if int(trainer.state.step) != best:
            trainer.state = restored_state(trainer.program, self.checkpoints, self.config, best)
        self.checkpoints.drop_after(best)


class Save(Hook):
    """Saves the state when it is due or may be the best, and on a signal, which ends the run."""

    def __init__(
        self, config: Config, checkpoints: Checkpoints, evaluate: Evaluate, signals: Signals
    ):
        self.every = [
            each for each in (config.checkpoint.every, config.checkpoint.keep_every) if each
        ]
        self.checkpoints, self.evaluate, self.signals = checkpoints, evaluate, signals

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Agrees with other processes on the step at which a signal stops all of them."""
        self.signals.exchange(step.number)

    def is_due(self, trainer: Trainer, number: int) -> bool:
        """The last step is not: its state is saved once the run has been evaluated."""
        if self.evaluate.stopping and self.evaluate.is_due(trainer, number):
            return True
        scheduled = any(number % every == 0 for every in self.every)
        if (keep := self.checkpoints.keep) is not None:
            scheduled |= number in keep.best_steps(keep.scores)
        return number != trainer.num_steps and bool(scheduled or self.signals.received(number))

    def after_step(self, trainer: Trainer, number: int) -> None:
        """Raises Interrupted after a signal, unless the run is at its end anyway."""
        received = self.signals.received(number)  # may come at any time, so it is asked once
        if self.is_due(trainer, number):
            self.evaluate.log.sync()  # a run that resumes from here finds every line before
            self.checkpoints.save(trainer.state)
        if received and number != trainer.num_steps:
            raise Interrupted(number, received)


def preservation(config: Config, dataset: Dataset) -> Preservation:
    """Which checkpoints of a run are kept."""
    metric, given = _metric(config, dataset), config.checkpoint
    kept = given.max_to_keep, given.keep_every, given.keep_best
    return Preservation(*kept, metric.name, metric.lower_is_better)


def recall_scores(workdir: epath.Path, checkpoints: Checkpoints, start: int) -> None:
    """Tells the checkpoints of the evaluations that a run has recorded up to step `start`, and of
    no others.
    """
    assert checkpoints.keep is not None
    checkpoints.keep.scores.clear()
    for record in _evaluations(workdir, start):
        checkpoints.keep.see(record["step"], record)


def recalled_stopping(
    config: Config, workdir: epath.Path, dataset: Dataset, checkpoints: Checkpoints, start: int
) -> Stopping | None:
    """Early stopping as it stood at step `start` of a run; None without patience."""
    if not config.evaluation.patience:
        return None
    metric = _metric(config, dataset)
    new = metric.name, metric.lower_is_better, config.evaluation.patience
    stopping = Stopping(*new)
    stopping.recall(_evaluations(workdir, start))
    if stopping.best is None:
        return stopping
    if stopping.best not in checkpoints.steps:  # patience came after it
        return Stopping(*new)
    checkpoints.protect(stopping.best)
    return stopping


def _metric(config: Config, dataset: Dataset) -> PrimaryMetric:
    return primary_metric(config, available=[f"eval/{name}" for name in dataset.metrics])


def _evaluations(workdir: epath.Path, start: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to step `start` whose evaluations were of the same rows."""
    since, records = asked_alike_since(workdir), read_metrics(workdir / "metrics.jsonl")
    return [record for record in records if since < record["step"] <= start]
