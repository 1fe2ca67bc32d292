"""Describes a finished run for its result.json: its metrics, and what made them."""

import statistics
from typing import Any

import jax
from etils import epath

from lm.checkpoints.identity import content_hash
from lm.config import Config
from lm.data.files import write_json
from lm.devices.hosts import is_main
from lm.evaluation.held_out import Evaluation
from lm.experiment.learning_curve import draw_curve
from lm.experiment.primary_metric import check_finite, primary_metric
from lm.experiment.provenance import versions
from lm.finetuning import param_count
from lm.training.metric_writer import read_metrics
from lm.training.program import Program


def write_result(
    found: Evaluation, config: Config, program: Program, workdir: epath.Path, **own: Any
) -> dict[str, Any]:
    """Metrics, with what a table sets beside them and what it needs to know of the run.

    The first process writes them to result.json, which says that the run is finished, with the
    report of its predictions and its learning curve beside it.

    Speed is the median over the lines of metrics.jsonl, those of earlier legs too: whether a run
    was interrupted, and where, does not show.

    Args:
      found: the last evaluation.
      config, program, workdir: of the run.
      own: what else the run knows of itself.

    Raises:
      UserError: where the primary metric is not finite.
    """
    metrics = found.metrics
    primary = primary_metric(config, available=metrics)
    check_finite(primary, metrics)
    if is_main():
        metrics = metrics | found.write_report(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    rates = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    result = {
        **metrics,
        **own,
        "batch_size": config.batch_size,
        "tokens_seen": program.config.steps * config.batch_size * config.data.seq_len,
        "seed": config.seed,
        "parameters": param_count(program.abstract_params),
        "trained_parameters": param_count(program.abstract_state.params),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "config_hash": content_hash(config),
        "device": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "versions": versions(),
    }
    if is_main():
        draw_curve(workdir, primary.name)
        write_json(workdir / "result.json", result)  # last: it says that the run is finished
    return result
