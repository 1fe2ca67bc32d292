"""Trains the runs of a chain in the folders 1, 2, ... of a workdir, one for each task, each
initialized from the one before; after each run, all tasks are evaluated.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from lm.checkpoints.identity import content_hash
from lm.checkpoints.restore import restore
from lm.config import Config, override
from lm.data.files import write_json, write_text
from lm.devices.hosts import from_main
from lm.evaluation.held_out import evaluate
from lm.experiment.continual.forgetting import forgetting_metrics, to_markdown
from lm.experiment.primary_metric import check_finite, primary_metric
from lm.experiment.train import train
from lm.training.metric_writer import open_writer, read_metrics
from lm.training.prepare import total_steps

TABLE = "continual.md"


def stage_configs(config: Config, workdir: epath.Path, corpus: Any) -> list[Config]:
    """The configs of a chain's runs, in order."""
    count = len(config.continual.sources)
    stages = [override(config, {"continual.stage": stage}) for stage in range(1, count + 1)]
    if config.continual.joint:
        steps = [total_steps(run, corpus.only(number)) for number, run in enumerate(stages)]
        return [override(stages[0], {"epochs": None, "steps": sum(steps)})]
    first, *later = stages
    unused = {"continual.replay_fraction": 0.0, "continual.memory_size": 0}
    chain = [override(first, {**unused, "regularization.ewc": 0.0})]
    for stage, run in enumerate(later, start=1):
        chain.append(override(run, {"init_from": str(workdir / str(stage))}))
    return chain


def train_stages(
    config: Config, workdir: epath.Path, chain: list[Config], corpus: Any, label: str
) -> dict[str, Any]:
    """Trains and evaluates the runs that are not recorded yet; writes the table and result.json."""
    metric = primary_metric(config, available=[f"eval/{name}" for name in corpus.task.metrics])
    sources = config.continual.sources
    names = [f"{metric.name}/{stage}" for stage in range(1, len(sources) + 1)]
    # One line for each run: the metric of all tasks after it, at the steps of all runs so far.
    records = from_main(lambda: read_metrics(workdir / "metrics.jsonl"))
    before = records[-1]["step"] if records else 0
    writer = open_writer(config, workdir, before, before)
    results = []
    for stage, run in enumerate(chain, start=1):
        folder = workdir / str(stage)
        results.append(train(run, folder, f"{label}, {stage} of {len(chain)}"))
        if stage > len(records):
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
        "tokens_seen": sum(result["tokens_seen"] for result in results),
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
