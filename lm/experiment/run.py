"""One leg of a run, from its starting point to the result or to a signal."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.config import Config
from lm.data import Dataset, local_train_batches
from lm.errors import Interrupted
from lm.evaluation.held_out import Evaluation
from lm.experiment.hooks import Evaluate, Save, preservation, recall_scores, recalled_stopping
from lm.experiment.initial_state import initial_state
from lm.experiment.result import write_result
from lm.experiment.rollback import Rollbacks
from lm.training.hooks import Alarm, NanCheck, RollBack, Trace, open_log
from lm.training.preemption import Signals
from lm.training.program import Program
from lm.training.random_streams import RunStream
from lm.training.train_state import TrainState
from lm.training.trainer import Trainer


class Run:
    """A trainer in a workdir, with the hooks that evaluate, save and log.

    Args:
      config, workdir, dataset, program: of the run.
      label: what the progress bar calls it.
      still_held: raises where another command has the workdir now.
      commit: of the code; None outside a checkout.
      signals: that stop it; None: its own.
      trainer: the kind that makes its steps.
    """

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        dataset: Dataset,
        program: Program,
        label: str,
        still_held: Callable[[], None],
        commit: str | None,
        signals: Signals | None = None,
        trainer: type[Trainer] = Trainer,
    ):
        self.config, self.workdir, self.dataset, self.program = config, workdir, dataset, program
        self.label, self.still_held = label, still_held
        self.checkpoints = Checkpoints(workdir, preservation(config, dataset))
        self.signals, self.rollbacks = signals or Signals(), Rollbacks(program, workdir)
        self._make_trainer = trainer
        self.commit, self.begun = commit, time.perf_counter()
        self.root = jax.random.key(config.seed)
        key = jax.random.fold_in(self.root, RunStream.INIT)
        state, origin = initial_state(program, self.checkpoints, config, dataset, key, label)
        print(f"{label}: {origin}", flush=True)
        self._begin(state)

    def _begin(self, state: TrainState) -> None:
        """Makes the trainer of the steps after a state, and its hooks."""
        config, dataset, program = self.config, self.dataset, self.program
        checkpoints, start = self.checkpoints, int(state.step)

        def batches_from(number: int) -> Iterator[Mapping[str, np.ndarray]]:
            return local_train_batches(
                program.mesh,
                dataset.rows("train"),
                batch_size=config.batch_size,
                seed=config.seed,
                start=number,
                groups=dataset.row_groups(config),
            )

        recall_scores(self.workdir, checkpoints, start)
        stopping = recalled_stopping(config, self.workdir, dataset, checkpoints, start)
        # Where only result.json was missing, the last evaluation is made and written again.
        again = start == program.config.steps and stopping is None
        self.log = open_log(config, program, self.workdir, start, start - again, self.label)
        self.evaluate = Evaluate(config, dataset, checkpoints, stopping, self.log, self.still_held)
        self.trace = Trace(program.config.log, self.workdir / "profile")
        hooks = (
            self.evaluate,  # first: it checks the claim before anything is written
            Alarm(program.config.alarm),
            NanCheck(self._last_checkpoint),
            Save(config, checkpoints, self.evaluate, self.signals),
            self.trace,
            self.log,  # last: what the others take is no time of training
        )
        batches = self.rollbacks.batches(batches_from, start)
        key = jax.random.fold_in(self.root, RunStream.STEPS)
        self.trainer = self._make_trainer(program, state, batches, key, hooks)

    def _train(self) -> None:
        """Trains to the last step, from an earlier one again where an alarm says so."""
        while True:
            try:
                self.trainer.fit()
                return
            except RollBack as raised:
                alarm = raised
            state = self.rollbacks.go_back(alarm, self.trainer.state, self.checkpoints)
            self.trace.close()
            self.log.close()
            self._begin(state)

    def finish(self) -> dict[str, Any]:
        """Trains to the end, evaluates and saves; what result.json holds.

        Raises:
          Interrupted: after a signal, once the state is saved.
        """
        with self.signals:
            try:
                self._train()
                return self.conclude()
            finally:
                self.close()

    def conclude(self) -> dict[str, Any]:
        """Evaluates and saves after training; what result.json holds.

        Raises:
          Interrupted: after a signal, when all is saved.
        """
        trainer, evaluate = self.trainer, self.evaluate
        if evaluate.stopping:
            evaluate.return_to_best(trainer)
            found = evaluate.measure(trainer)
        else:
            found = evaluate.run(trainer, trainer.num_steps)
            self.checkpoints.save(trainer.state)
            self.checkpoints.wait()
        result = self.result(found)
        if received := self.signals.at_end():
            raise Interrupted(self.program.config.steps, received)
        return result

    def result(self, found: Evaluation) -> dict[str, Any]:
        """What every process knows of the finished run; the first writes it."""
        self.log.sync()
        stopping = self.evaluate.stopping
        own = {} if stopping is None else {"best_step": stopping.best}
        seconds = self.log.writer.seconds if self.log.writer else time.perf_counter() - self.begun
        return write_result(
            found,
            self.config,
            self.program,
            self.workdir,
            **own,
            steps=self.trainer.num_steps,
            flops_per_token=self.log.flops,
            memory=self.log.step_memory(self.trainer),
            seconds=round(seconds, 3),
            data_hash=self.dataset.manifest["hash"],
            commit=self.commit,
        )

    def close(self) -> None:
        """Leaves everything on disk."""
        self.trace.close()
        self.log.close()
        self.checkpoints.close()

    def _last_checkpoint(self) -> int | None:
        self.checkpoints.wait()
        return self.checkpoints.latest
