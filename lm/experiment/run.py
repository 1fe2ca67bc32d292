"""One leg of a run, from its starting point to the result or to a signal."""

import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.config import Config
from lm.data import Dataset, local_train_batches
from lm.errors import Interrupted
from lm.evaluation.held_out import Evaluation
from lm.experiment.hooks import Evaluate, Save, preservation, recall_scores, recalled_stopping
from lm.experiment.initial_state import initial_state
from lm.experiment.result import write_result
from lm.training.hooks import NanCheck, open_log
from lm.training.preemption import Signals
from lm.training.profiling.paths import describe_paths
from lm.training.profiling.trace import Trace
from lm.training.program import Program
from lm.training.random_streams import RunStream
from lm.training.trainer import Trainer


class Run:
    """A trainer in a workdir, with the hooks that evaluate, save and log."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        dataset: Dataset,
        program: Program,
        label: str,
        still_held: Callable[[], None],
        commit: str | None,
    ):
        self.config, self.workdir, self.dataset, self.program = config, workdir, dataset, program
        self.checkpoints = Checkpoints(workdir, preservation(config, dataset))
        self.signals = Signals()
        self.commit, self.begun = commit, time.perf_counter()
        root = jax.random.key(config.seed)
        key = jax.random.fold_in(root, RunStream.INIT)
        state, source = initial_state(program, self.checkpoints, config, dataset, key, label)
        start, num_steps = int(state.step), program.config.steps
        batches = local_train_batches(
            program.mesh,
            dataset.rows("train"),
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            groups=dataset.row_groups(config),
        )
        recall_scores(workdir, self.checkpoints, start)
        stopping = recalled_stopping(config, workdir, dataset, self.checkpoints, start)
        print(f"{label}: {source}; {describe_paths(program)}", flush=True)
        # Where only result.json was missing, the last evaluation is made and written again.
        again = start == num_steps and stopping is None
        self.log = open_log(config, program, workdir, start, start - again, label)
        self.evaluate = Evaluate(config, dataset, self.checkpoints, stopping, self.log, still_held)
        self.trace = Trace(program.config.log, workdir / "profile")
        hooks = (
            self.evaluate,  # first: it checks the claim before anything is written
            NanCheck(self._last_checkpoint),
            Save(config, self.checkpoints, self.evaluate, self.signals),
            self.trace,
            self.log,  # last: what the others take is no time of training
        )
        key = jax.random.fold_in(root, RunStream.STEPS)
        self.trainer = Trainer(program, state, batches, key, hooks)

    def finish(self) -> dict[str, Any]:
        """Trains to the end, evaluates and saves; what result.json holds.

        Raises:
          Interrupted: after a signal, once the state is saved.
        """
        trainer, evaluate = self.trainer, self.evaluate
        with self.signals:
            try:
                trainer.fit()
                if evaluate.stopping:
                    evaluate.return_to_best(trainer)
                    found = evaluate.measure(trainer)
                else:
                    found = evaluate.run(trainer, trainer.num_steps)
                    self.checkpoints.save(trainer.state)
                    self.checkpoints.wait()
                result = self.result(found)
                received = self.signals.at_end()
            finally:
                self.close()
        if received:
            raise Interrupted(trainer.num_steps, received)
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
