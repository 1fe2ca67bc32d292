"""Trains a chain of runs in the folders 1, 2, ... of a workdir, one for each task, each initialized
from the one before; after each run, all tasks are evaluated.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from lm.checkpoints.initialize import check_donor
from lm.checkpoints.restore import restore
from lm.checkpoints.resume import FREE, record_changes
from lm.checkpoints.run_files import recorded_config
from lm.config import Config, content_hash, override
from lm.data.files import write_json, write_text
from lm.evaluation.held_out import evaluate
from lm.experiment.continual.forgetting import forgetting_metrics, to_markdown
from lm.experiment.continuation import total_steps
from lm.experiment.primary_metric import check_finite, primary_metric
from lm.experiment.run_dir import claimed, held, open_workdir
from lm.experiment.train import train
from lm.training.metric_writer import Writer, read_metrics
from lm.training.program import corpus_program, prepare_corpus
from lm.training.train_step import check_devices
from lm.training.validate import check

TABLE = "continual.md"


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
    workdir = epath.Path(workdir).resolve()
    finished = open_workdir(config, workdir, FREE)
    if finished is None:
        check_devices(config)
        check_donor(config.init_from)
        with held(workdir, wait):
            finished = open_workdir(config, workdir, FREE) or _train_chain(config, workdir, label)
    if jax.process_index() == 0:
        print((workdir / TABLE).read_text(), flush=True)
    return finished


def _train_chain(config: Config, workdir: epath.Path, label: str) -> dict[str, Any]:
    corpus = prepare_corpus(config)
    recorded = workdir / "config.json"
    if recorded.exists() and jax.process_index() == 0:
        record_changes(config, recorded_config(recorded), workdir, 0)  # its runs report their own
    with claimed(config, workdir, corpus):
        chain = stage_configs(config, workdir, corpus)
        corpus_program(chain[0], prepare_corpus(chain[0]))
    return _train_stages(config, workdir, chain, corpus, label)


def stage_configs(config: Config, workdir: epath.Path, corpus: Any) -> list[Config]:
    """The configs of a chain's runs, in order."""
    count = len(config.continual.sources)
    stages = [override(config, {"continual.stage": place}) for place in range(1, count + 1)]
    if config.continual.joint:
        steps = [total_steps(run, corpus.only(number)) for number, run in enumerate(stages)]
        return [override(stages[0], {"epochs": None, "steps": sum(steps)})]
    first, *later = stages
    unused = {
        "continual.replay_fraction": 0.0,
        "continual.memory_size": 0,
        "regularization.ewc": 0.0,
    }
    return [override(first, unused)] + [
        override(run, {"init_from": str(workdir / str(place))})
        for place, run in enumerate(later, start=1)
    ]


def _train_stages(
    config: Config, workdir: epath.Path, chain: list[Config], corpus: Any, label: str
) -> dict[str, Any]:
    """Trains and evaluates the runs that are not recorded yet; writes the table and result.json."""
    metric = primary_metric(config, available=[f"eval/{name}" for name in corpus.task.measures])
    sources, main = config.continual.sources, jax.process_index() == 0
    names = [f"{metric.name}/{place}" for place in range(1, len(sources) + 1)]
    # One line for each run: the metric of all tasks after it, at the steps of all runs so far.
    records = read_metrics(workdir / "metrics.jsonl")
    before = records[-1]["step"] if records else 0
    writer = Writer(workdir, before, before, config.log.tensorboard) if main else None
    results = []
    for place, run in enumerate(chain, start=1):
        folder = workdir / str(place)
        results.append(train(run, folder, f"{label}, {place} of {len(chain)}"))
        if place > len(records):
            scores = dict(zip(names, _evaluate_tasks(run, folder, metric.name), strict=True))
            records.append(scores)
            if writer is not None:
                writer.write(sum(result["steps"] for result in results), scores)
    if writer is None:
        return results[-1]
    writer.close()
    matrix = np.array([[record[name] for name in names] for record in records])
    own = ("interval", "best_step")  # of the last task alone, as are its metrics
    last = {k: v for k, v in results[-1].items() if not k.startswith("eval/") and k not in own}
    result = {
        metric.name: float(matrix[-1].mean()),
        **forgetting_metrics(matrix, metric.lower_is_better),
        **last,
        "matrix": matrix.tolist(),
        "steps": sum(result["steps"] for result in results),
        "seconds": round(sum(result["seconds"] for result in results), 3),
        "config_hash": content_hash(config),
    }
    check_finite(metric, result)
    write_text(workdir / TABLE, to_markdown(matrix, sources, metric))
    write_json(workdir / "result.json", result)
    return result


def _evaluate_tasks(config: Config, folder: epath.Path, metric: str) -> list[float]:
    """The metric of a finished run on the held-out examples of every task."""
    run = restore(folder, given=config)
    corpus: Any = run.corpus
    parts = [corpus.only(number) for number in range(len(config.continual.sources))]
    with jax.set_mesh(run.program.mesh):
        found = [evaluate(run.program, run.params, part, run.config) for part in parts]
    return [each.metrics[metric] for each in found]
