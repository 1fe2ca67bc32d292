"""Describes a finished run for its result.json: its metrics, and what made them."""

import statistics
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lm.config import Config, content_hash
from lm.experiment.provenance import versions
from lm.finetuning import param_count
from lm.training.metric_writer import read_metrics
from lm.training.program import Program


def describe(
    metrics: Mapping[str, Any], config: Config, program: Program, workdir: epath.Path, **own: Any
) -> dict[str, Any]:
    """Metrics, with what a table sets beside them and what it needs to know of the run.

    Speed is the median over the lines of metrics.jsonl, those of earlier legs too: whether a run
    was interrupted, and where, does not show.

    Args:
      metrics: of the last evaluation.
      config, program, workdir: of the run.
      own: what else the run knows of itself.
    """
    records = read_metrics(workdir / "metrics.jsonl")
    rates = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    return {
        **metrics,
        **own,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "parameters": param_count(program.abstract_params),
        "trained_parameters": param_count(program.abstract_state.params),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "config_hash": content_hash(config),
        "device": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "versions": versions(),
    }
