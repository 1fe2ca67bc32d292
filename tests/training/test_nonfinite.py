"""A number that is not finite is said to be none: in files, in tables and to what follows it."""

import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import override
from lm.data.files import to_json, write_json
from lm.errors import UserError
from lm.evaluation import held_out
from lm.evaluation.diagnostics import report
from lm.evaluation.task_report import write_predictions
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.primary_metric import check_finite, primary_metric
from lm.experiment.run_dir import open_workdir
from lm.training.config import resolve
from lm.training.metric_writer import Writer, read_metrics
from lm.training.regularization import generalization_gap

METRIC = "eval/bits_per_byte"


def test_json_has_null_for_what_it_cannot_say_at_any_depth():
    content = {"a": math.nan, "b": [1.5, -math.inf, {"c": np.float64("nan")}], "d": (None, "NaN")}
    assert json.loads(to_json(content)) == {
        "a": None,
        "b": [1.5, None, {"c": None}],
        "d": [None, "NaN"],
    }


def test_metrics_that_are_not_finite_are_null_and_read_back_as_nan(tmp_path):
    for step in (1, 2):  # the second rewrites the line of the first
        writer = Writer(tmp_path, step, step)
        writer.write(step, {METRIC: math.nan, "train/loss": 2.0})
        writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(f'"{METRIC}": null' in line for line in lines)
    assert all(math.isnan(record[METRIC]) for record in read_metrics(tmp_path / "metrics.jsonl"))


def test_a_result_that_is_not_finite_is_null_and_read_back_as_nan(tmp_path, small_config):
    write_json(tmp_path / "config.json", small_config.to_dict())
    whole = {"steps": 3, "seconds": 1.0, "config_hash": "abc", "memory": None}
    write_json(tmp_path / "result.json", whole | {METRIC: math.nan})
    assert "NaN" not in (tmp_path / "result.json").read_text()
    result = open_workdir(small_config, tmp_path)
    assert result is not None and math.isnan(result[METRIC]) and result["memory"] is None


def test_a_null_metric_is_a_failed_seed_of_the_table(finish):
    points = [finish("a", 0, 1.5), finish("a", 1, 1.5), finish("b", 0, 1.0)]
    points += [finish("b", 1, math.nan)]
    path = points[-1].workdir / "result.json"
    write_json(path, json.loads(path.read_text()))
    table = tabulate(points)
    assert table.rows[1].verdict == "failed seed"
    assert table.missing == ("b seed 1: failed, eval/bits_per_byte is nan",)


def test_predictions_and_diagnoses_are_json(tmp_path, monkeypatch):
    monkeypatch.setattr(report.plot, "draw", lambda *_: None)
    write_predictions(tmp_path, [{"text": "é", "nats": math.inf}])
    report.write({"gradient": {"share": math.nan}}, "", tmp_path)
    assert json.loads((tmp_path / "predictions.jsonl").read_text()) == {"text": "é", "nats": None}
    assert json.loads((tmp_path / "diagnose.json").read_text()) == {"gradient": {"share": None}}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_judged_is_refused_by_name(small_config, value):
    with pytest.raises(UserError, match=f"eval/bits_per_byte is {value} after training"):
        check_finite(primary_metric(small_config), {METRIC: value})


def test_an_evaluation_of_no_tokens_is_refused_with_what_to_do(small_config, monkeypatch):
    sums = {"tokens": 0.0, "nats": 0.0, "bytes": 9.0, "words": np.zeros(4)}
    program = SimpleNamespace(eval_step=lambda *_: sums, mesh=None)
    monkeypatch.setattr(held_out, "sharded_eval_batches", lambda *_, **__: [{}])
    corpus = SimpleNamespace(rows=lambda _: [0], documents=lambda: None, language=None)
    config = override(small_config, {"objective": "masked"})
    with pytest.raises(UserError, match="objective masked predicts no token of the held-out rows"):
        held_out.likelihood(program, {}, corpus, config)


def test_a_gap_that_is_not_finite_moves_no_penalty(small_config, monkeypatch):
    state = SimpleNamespace(penalty_scale=jnp.float32(3.0), eval_params={})
    monkeypatch.setattr(generalization_gap, "generalization_gap", lambda *_: math.nan)
    monkeypatch.setattr(
        generalization_gap.dataclasses, "replace", lambda state, penalty_scale: penalty_scale
    )
    settings = {"regularization.penalty_adaptation": 1.0, "regularization.l2": 0.1}
    program = SimpleNamespace(config=resolve(override(small_config, settings)))
    strength, _ = generalization_gap.adapt_penalties(state, program, None)
    assert float(strength) == 3.0
