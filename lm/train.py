"""How does a run go from a config to a result? One state, one jitted step, one loop."""

import functools
import importlib.metadata
import json
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from lm import partition
from lm.check import check
from lm.checkpoint import Checkpoints, check_donor, starting_state
from lm.config import Config, content_hash, identity, to_dict
from lm.data import ByteTokenizer, Corpus, Tokenizer, prepare, train_batches
from lm.errors import Interrupted, UserError
from lm.evaluate import evaluate
from lm.flops import flops_per_token, peak_flops
from lm.metrics import Progress, Writer, write_json
from lm.nonfinite import first_nonfinite
from lm.output import OUTPUTS
from lm.step import Program, attention_path, build_program, check_devices, output_path
from lm.tune import count


def train(config: Config, workdir: epath.PathLike, label: str = "train") -> dict[str, Any]:
    """Runs an experiment to its end, or goes on with it; a finished one is left as it is.

    Args:
      config: every knob, as configs/default.py lists them.
      workdir: folder for everything the run writes; made where there is none.
      label: what the progress bar calls the run.

    Returns:
      What result.json holds.

    Raises:
      UserError: where the config is impossible, or the workdir belongs to another one.
      Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    check(config)
    workdir = epath.Path(workdir)
    finished = open_workdir(config, workdir)
    if finished is not None:
        return finished
    check_devices(config)
    check_donor(config.init_from)
    corpus = prepare_corpus(config)
    program = corpus_program(config, corpus)
    _claim(config, workdir, corpus)
    with jax.set_mesh(program.mesh):
        return _Run(config, workdir, corpus, program, label).finish()


def prepare_corpus(config: Config) -> Corpus:
    """The prepared rows of a config's data, made where the cache lacks them."""
    return prepare(**config.data, cache=epath.Path(config.cache).expanduser() / "data")


def corpus_program(config: Config, corpus: Corpus) -> Program:
    """The program of a config for a corpus, with the words' counts where the head asks for them."""
    counts = corpus.counts().tobytes() if OUTPUTS[config.output.head].needs_counts else None
    return shared_program(config, corpus.tokenizer.vocab_size, counts, corpus.tokenizer)


def shared_program(
    config: Config,
    vocab_size: int,
    counts: bytes | None = None,
    tokenizer: Tokenizer = ByteTokenizer(),  # noqa: B008 (has no state)
) -> Program:
    """The program of a config; the last one again where only the seed differs.

    What it compiles is kept on disk, in the config's cache. `counts` are int64 [V], as bytes.
    """
    cache = epath.Path(config.cache).expanduser() / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    settings = to_dict(config) | {"seed": None}
    return _program(json.dumps(settings, sort_keys=True), vocab_size, counts, tokenizer)


@functools.lru_cache(maxsize=1)
def _program(settings: str, vocab_size: int, counts: bytes | None, tokenizer: Tokenizer) -> Program:
    of_words = None if counts is None else np.frombuffer(counts, np.int64)
    return build_program(ConfigDict(json.loads(settings)), vocab_size, of_words, tokenizer)


def open_workdir(config: Config, workdir: epath.Path) -> dict[str, Any] | None:
    """The result of a finished run of this config in this workdir; None where there is work to do.

    Raises:
      UserError: where the workdir holds something else.
    """
    recorded = workdir / "config.json"
    if not recorded.exists():
        if workdir.exists() and not _is_free(workdir):
            raise UserError(f"{workdir} is not empty and is no run's folder; use another --workdir")
        return None
    check_same_config(config, ConfigDict(read_json(recorded)), workdir)
    result = workdir / "result.json"
    return read_json(result) if result.exists() else None


def check_same_config(
    config: Config, recorded: Config, workdir: epath.Path, besides: tuple[str, ...] = ()
) -> None:
    """Raises UserError where a config would change the numbers of the run in a workdir.

    Groups named in `besides` may differ, and so may where it runs and what it prints.
    """
    ours, theirs = identity(config), identity(recorded)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and key.split(".")[0] not in besides:
            raise UserError(
                f"{workdir} belongs to another config: config.{key} is {theirs.get(key)!r} there "
                f"and {ours.get(key)!r} here; use another --workdir, or that value"
            )


def _is_free(workdir: epath.Path) -> bool:
    """Whether a run may begin in a folder: nothing is there but a sweep's word on why it broke."""
    return workdir.is_dir() and all(
        child.name == "error.txt" or child.name.startswith(".") for child in workdir.iterdir()
    )


def read_json(path: epath.Path) -> dict[str, Any]:
    """The content of a JSON file of a workdir; UserError where it is damaged."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON ({error}); restore it, or use another folder"
        ) from None


def _claim(config: Config, workdir: epath.Path, corpus: Corpus) -> None:
    """Writes what the run is made of before it begins; checks that its text is still the same."""
    recorded = workdir / "data.json"
    if recorded.exists():
        check_same_text(workdir, corpus)
    elif jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", to_dict(config))
        write_json(recorded, corpus.manifest)


def check_same_text(workdir: epath.Path, corpus: Corpus) -> None:
    """Raises UserError where text or tokenizer are no longer those that a run began with."""
    before, now = read_json(workdir / "data.json"), corpus.manifest
    for name, ours, theirs in (
        ("text", now["hash"], before["hash"]),
        ("tokenizer", now["tokenizer"]["hash"], before["tokenizer"]["hash"]),
    ):
        if ours != theirs:
            raise UserError(
                f"{workdir} began with another {name} (hash {theirs[:12]}, now {ours[:12]}); "
                f"restore that {name}, or use another --workdir"
            )


class _Run:
    """One leg of a run: from its starting point to the end or to a signal."""

    def __init__(
        self, config: Config, workdir: epath.Path, corpus: Corpus, program: Program, label: str
    ):
        self.config, self.workdir, self.corpus, self.program = config, workdir, corpus, program
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        root = jax.random.key(config.seed)
        self.key = jax.random.fold_in(root, 1)
        self.state, origin = starting_state(
            program, self.checkpoints, config, jax.random.fold_in(root, 0)
        )
        self.start = int(self.state.step)
        self.main = jax.process_index() == 0
        self.commit = commit()
        if self.main:
            paths = f"attention {attention_path(config)}; {output_path(config, program.model)}"
            print(f"{label}: {origin}; {paths}", flush=True)
            # Where only result.json was missing, the last evaluation is made and written again.
            evaluated = self.start if self.start < config.steps else self.start - 1
            self.writer = Writer(workdir, self.start, evaluated, config.log.tensorboard)
        self.progress = Progress(config.steps, self.start, label, shown=self.main)
        self.flops = flops_per_token(program)
        self.peak = peak_flops()
        self.rates: list[float] = []
        self.clock, self.tokens = time.perf_counter(), 0.0

    def finish(self) -> dict[str, Any]:
        """The loop. Step k+1 is dispatched before the metrics of step k are fetched, so that the
        host never keeps the device waiting.
        """
        config = self.config
        rows = train_batches(
            self.corpus.rows("train"),
            batch_size=config.batch_size,
            seed=config.seed,
            start=self.start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        pending = None
        with _Signals() as signals:
            for step in range(self.start + 1, config.steps + 1):
                batch = partition.global_batch(self.program.mesh, next(rows))
                self.state, metrics = self.program.step(self.state, batch, self.key)
                if pending is not None:
                    self.record(*pending)
                pending = (step, metrics, batch)
                evaluates = config.evaluation.every and step % config.evaluation.every == 0
                last = step == config.steps
                saves = config.checkpoint.every and step % config.checkpoint.every == 0 and not last
                if evaluates or saves or last or signals.received:
                    # Nothing is evaluated or saved before the step is known to be finite.
                    self.record(*pending)
                    pending = None
                    if evaluates and not last:
                        self.evaluate(step)
                    if saves or (signals.received and not last):
                        self.checkpoints.save(self.state)
                    if signals.received and not last:
                        self.close()
                        raise Interrupted(step, signals.received)
                    self.clock, self.tokens = time.perf_counter(), 0.0
            metrics = self.evaluate(config.steps)
            self.checkpoints.save(self.state)
            self.checkpoints.wait()
            result = self.result(metrics)
            self.close()
        if signals.received:
            raise Interrupted(config.steps, signals.received)
        return result

    def record(self, step: int, metrics: dict[str, jax.Array], batch: Any) -> None:
        """Fetches one step's metrics, checks that they are finite, and writes them when due."""
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
            self.rates.append(speed)
            values["tokens_per_second"] = round(speed, 1)
        if due and self.main:
            self.writer.write(step, values)
        if due or compiled:
            self.clock, self.tokens = time.perf_counter(), 0.0

    def stop_nonfinite(self, step: int, batch: Any) -> None:
        """Names the tensor; the state is still the one before the step, and is not saved."""
        key = jax.random.fold_in(self.key, self.state.step)
        name = first_nonfinite(self.program, self.state.whole, batch, key)
        self.close()
        kept = self.checkpoints.latest
        raise UserError(
            f"step {step}: the loss or its gradient is not finite; first: "
            f"{name}. Last good checkpoint: {'none' if kept is None else f'step {kept}'}; begin "
            "again in another --workdir with a lower config.optimizer.learning_rate or a clip_norm"
        )

    def evaluate(self, step: int) -> dict[str, float]:
        """Evaluates the current parameters and writes the line."""
        metrics = evaluate(self.program, self.state.evaluated, self.corpus, self.config)
        if self.main:
            self.writer.write(step, metrics)
        return metrics

    def result(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Writes result.json, which says that the run is finished."""
        if not self.main:
            return metrics
        result = metrics | {
            "steps": self.config.steps,
            "seed": self.config.seed,
            "parameters": count(self.program.params),
            "trained_parameters": count(self.program.abstract.params),
            "flops_per_token": self.flops,
            "tokens_per_second": statistics.median(self.rates) if self.rates else None,
            "seconds": round(self.writer.seconds, 3),
            "config_hash": content_hash(self.config),
            "data_hash": self.corpus.manifest["hash"],
            "commit": self.commit,
            "device": jax.devices()[0].device_kind,
            "mesh": dict(self.program.mesh.shape),
            "versions": versions(),
        }
        write_json(self.workdir / "result.json", result)
        return result

    def close(self) -> None:
        self.progress.close()
        self.checkpoints.close()
        if self.main:
            self.writer.close()


class _Signals:
    """Turns the first SIGINT or SIGTERM into a request; a second one stops at once."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "_Signals":
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = number
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": sys.version.split()[0]} | {n: importlib.metadata.version(n) for n in names}


def commit() -> str | None:
    """The commit of this code, with "+" where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = epath.Path(__file__).parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
