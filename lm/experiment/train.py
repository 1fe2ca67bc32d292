"""How does a run go from a config to a result? One state, one jitted step, one loop."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.init_params import check_init_from
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.resume import asked_alike_since
from lm.checkpoints.teacher import teacher_config
from lm.config import Config
from lm.data import Dataset, train_batches
from lm.data.files import write_json
from lm.devices import sharding
from lm.errors import Interrupted, UserError
from lm.evaluation.held_out import evaluate
from lm.experiment.continuation import go_on
from lm.experiment.initial_state import initial_state
from lm.experiment.learning_curve import draw_curve
from lm.experiment.primary_metric import check_finite, describe_metrics, primary_metric
from lm.experiment.provenance import commit
from lm.experiment.result import describe
from lm.experiment.run_dir import claimed, held, open_workdir
from lm.experiment.validate import check
from lm.training.announce import announced
from lm.training.build_model import check_devices
from lm.training.early_stopping import Stopping
from lm.training.layerwise_lr import shared_layer_rate
from lm.training.metric_writer import Progress, Writer, read_metrics
from lm.training.nan_check import first_nonfinite
from lm.training.preemption import Signals
from lm.training.prepare import corpus_program, prepare_corpus, total_steps
from lm.training.profiling.flops import flops_per_token, peak_flops
from lm.training.profiling.memory import check_memory, step_memory
from lm.training.profiling.paths import attention_path, output_path
from lm.training.program import Program
from lm.training.random_streams import RunStream
from lm.training.regularization.generalization_gap import adapt_penalties


def train(
    config: Config, workdir: epath.PathLike, label: str = "train", wait: bool = False
) -> dict[str, Any]:
    """Runs an experiment to its end, or goes on with it; a finished one is left as it is.

    Args:
      config: every knob, as configs/default.py lists them.
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
    check_init_from(config.init_from)
    with held(workdir, wait) as still_held:
        # Again: whom we have waited for may have finished it.
        if (finished := open_workdir(config, workdir)) is not None:
            return finished
        corpus = prepare_corpus(config)
        go_on(config, workdir, corpus, label)
        program = corpus_program(config, corpus, teacher_config(config))
        check_memory(program)
        with jax.set_mesh(program.mesh):
            with claimed(config, workdir, corpus):
                run = _Run(config, workdir, corpus, program, label, still_held)
            return run.finish()


class _Run:
    """One leg of a run: from its starting point to the end or to a signal."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        corpus: Dataset,
        program: Program,
        label: str,
        still_held: Callable[[], None],
    ):
        self.config, self.workdir, self.corpus, self.program = config, workdir, corpus, program
        self.steps, self.still_held = total_steps(config, corpus), still_held
        self.checkpoints = Checkpoints(workdir, config.checkpoint.max_to_keep)
        root = jax.random.key(config.seed)
        self.key = jax.random.fold_in(root, RunStream.STEPS)
        key = jax.random.fold_in(root, RunStream.INIT)
        with announced(f"{label}: making or reading the parameters"):
            self.state, origin = initial_state(program, self.checkpoints, config, corpus, key)
        self.start = int(self.state.step)
        self.rows = train_batches(
            corpus.rows("train"),
            batch_size=config.batch_size,
            seed=config.seed,
            start=self.start,
            groups=corpus.row_groups(config),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.main = jax.process_index() == 0
        self.commit = commit()
        self.stopping = self.remembered()
        if self.main:
            paths = f"attention {attention_path(config, program)}; {output_path(config, program)}"
            print(f"{label}: {origin}; {paths}{shared_layer_rate(config)}", flush=True)
            # Where only result.json was missing, the last evaluation is made and written again.
            again = self.start == self.steps and self.stopping is None
            evaluated = self.start - 1 if again else self.start
            self.writer = Writer(workdir, self.start, evaluated, config.log.tensorboard)
        self.progress = Progress(self.steps, self.start, label, shown=self.main)
        self.flops = flops_per_token(program)
        self.peak = peak_flops()
        self.memory: int | None = None
        self.begun = self.clock = time.perf_counter()
        self.tokens = 0.0

    def finish(self) -> dict[str, Any]:
        """The loop. Step k+1 is dispatched before the metrics of step k are fetched, so that the
        host never keeps the device waiting.
        """
        config = self.config
        pending = None
        with Signals() as signals:
            for step in range(self.start + 1, self.steps + 1):
                if self.stopping and self.stopping.done:
                    break
                batch = sharding.global_batch(self.program.mesh, next(self.rows))
                with announced("compiling a step") if step == self.start + 1 else nullcontext():
                    self.state, metrics = self.program.train_step(self.state, batch, self.key)
                if pending is not None:
                    self.record(*pending)
                pending = (step, metrics, batch)
                evaluates = config.evaluation.every and step % config.evaluation.every == 0
                last = step == self.steps
                saves = config.checkpoint.every and step % config.checkpoint.every == 0 and not last
                if self.stopping and (evaluates or last):
                    # The best state must still be there at the end.
                    evaluates = saves = True
                if evaluates or saves or last or signals.received:
                    # Nothing is evaluated or saved before the step is known to be finite.
                    self.record(*pending)
                    pending = None
                    if evaluates and (self.stopping or not last):
                        self.evaluate(step)
                    if saves or (signals.received and not last):
                        self.checkpoints.save(self.state)
                    if signals.received and not last:
                        self.close()
                        raise Interrupted(step, signals.received)
                    self.clock, self.tokens = time.perf_counter(), 0.0
            if self.stopping:
                self.return_to_best()
                metrics = self.measure()
            else:
                metrics = self.evaluate(self.steps)
                self.checkpoints.save(self.state)
                self.checkpoints.wait()
            try:
                check_finite(primary_metric(config, available=metrics), metrics)
                result = self.result(metrics)
            finally:
                self.close()
        if signals.received:
            raise Interrupted(self.steps, signals.received)
        return result

    def record(self, step: int, metrics: dict[str, jax.Array], batch: Any) -> None:
        """Fetches one step's metrics, checks that they are finite, and writes them when due."""
        self.still_held()
        values = {name: float(value) for name, value in metrics.items()}
        if not values.pop("finite"):
            self.stop_nonfinite(step, batch)
        self.tokens += values.pop("tokens")
        speed = self.tokens / (time.perf_counter() - self.clock)
        share = speed * self.flops / self.peak if self.peak else None
        self.progress.update(values["train/loss"], speed, share)
        compiled = step == self.start + 1
        due = step % self.config.log.every == 0 or step == 1
        if due and not compiled:
            values["tokens_per_second"] = round(speed, 1)
        if due and self.main:
            self.writer.write(step, values)
        if compiled:
            self.memory = step_memory(self.program, self.state, batch, self.key)
        if due or compiled:
            self.clock, self.tokens = time.perf_counter(), 0.0

    def stop_nonfinite(self, step: int, batch: Any) -> None:
        """Names the tensor; the state is still the one before the step, and is not saved."""
        key = jax.random.fold_in(self.key, self.state.step)
        name = first_nonfinite(self.program, self.state, batch, key)
        self.close()
        kept = self.checkpoints.latest
        raise UserError(
            f"step {step}: the loss or its gradient is not finite; first: "
            f"{name}. Last good checkpoint: {'none' if kept is None else f'step {kept}'}; begin "
            "again in another --workdir with a lower config.optimizer.learning_rate or a clip_norm"
        )

    def measure(self) -> dict[str, float]:
        """Evaluates the current parameters."""
        found = evaluate(self.program, self.state.eval_params, self.corpus, self.config)
        self.write_report = found.write_report
        return found.metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluates the current parameters and writes the line."""
        try:
            metrics = self.measure()
        except Exception:
            # What was learned is not lost with what cannot be judged.
            self.checkpoints.save(self.state)
            self.close()
            raise
        self.still_held()  # as before every line; an evaluation may take long
        self.state, gap = adapt_penalties(self.state, self.program, self.corpus, self.config)
        if self.main:
            self.writer.write(step, metrics | gap)
            self.progress.evaluated(", ".join(describe_metrics(metrics, self.config)))
        if self.stopping and self.stopping.see(step, metrics[self.stopping.metric]):
            self.checkpoints.protect(step)
        return metrics

    def remembered(self) -> Stopping | None:
        """Early stopping as it stood at the first step of this leg; None without patience."""
        if not self.config.evaluation.patience:
            return None
        metric = primary_metric(
            self.config, available=[f"eval/{name}" for name in self.corpus.metrics]
        )
        stopping = Stopping(metric.name, metric.lower_is_better, self.config.evaluation.patience)
        records = read_metrics(self.workdir / "metrics.jsonl")
        since = asked_alike_since(self.workdir)
        stopping.recall(record for record in records if since < record["step"] <= self.start)
        if stopping.best is None:
            return stopping
        if stopping.best not in self.checkpoints.steps:  # patience came after it
            return Stopping(metric.name, metric.lower_is_better, self.config.evaluation.patience)
        self.checkpoints.protect(stopping.best)
        return stopping

    def return_to_best(self) -> None:
        """Takes up the state of the best evaluation, and makes it the newest checkpoint."""
        assert self.stopping is not None
        self.checkpoints.wait()
        if self.stopping.best is None:  # no evaluation was finite
            return
        if int(self.state.step) != self.stopping.best:
            best = self.stopping.best
            self.state = restored_state(self.program, self.checkpoints, self.config, best)
        self.checkpoints.drop_after(self.stopping.best)

    def result(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What every process knows of the finished run; result.json, which the first writes, says
        that it is.
        """
        if self.main:
            metrics = metrics | self.write_report(self.workdir)
        if self.stopping:
            metrics = metrics | {"best_step": self.stopping.best}
        if self.memory is None:  # no step was left to this leg
            batch = sharding.global_batch(self.program.mesh, next(self.rows))
            self.memory = step_memory(self.program, self.state, batch, self.key)
        seconds = self.writer.seconds if self.main else time.perf_counter() - self.begun
        result = describe(
            metrics,
            self.config,
            self.program,
            self.workdir,
            steps=self.steps,
            flops_per_token=self.flops,
            memory=self.memory,
            seconds=round(seconds, 3),
            data_hash=self.corpus.manifest["hash"],
            commit=self.commit,
        )
        if self.main:
            write_json(self.workdir / "result.json", result)
            draw_curve(self.workdir, primary_metric(self.config, available=metrics).name)
        return result

    def close(self) -> None:
        self.progress.close()
        self.checkpoints.close()
        if self.main:
            self.writer.close()
