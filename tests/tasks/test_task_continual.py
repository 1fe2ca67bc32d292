"""A chain learns tasks in turn, holds on to earlier ones by its formulas, and resumes exactly."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.checkpoints.restore import restore
from lm.config import override
from lm.data import train_batches
from lm.errors import Interrupted, UserError
from lm.evaluation import held_out
from lm.experiment.continual.forgetting import forgetting, forgetting_metrics, to_markdown
from lm.experiment.continual.importance import squares, with_importance
from lm.experiment.continual.run_experiment import run_experiment
from lm.experiment.primary_metric import PrimaryMetric
from lm.experiment.train import train
from lm.tasks.prepare import prepare_task
from tests.experiment.test_train import interrupt_at

WORDS = {"food": (("fresh", "tasty"), ("stale", "burnt")), "films": (("gripping",), ("tedious",))}


@pytest.fixture
def chain(task_config, tmp_path, monkeypatch):
    """Two tasks of other words, the second smaller; nothing is drawn of their predictions."""
    draw = random.Random(0)
    for name, (good, bad) in WORDS.items():
        lines = [
            (f"{draw.choice(good if n % 2 else bad)} {name} {n}", "pos" if n % 2 else "neg")
            for n in range(70 if name == "food" else 50)
        ]
        rows = ["text,label", *(f"{text},{label}" for text, label in lines)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    monkeypatch.setattr(held_out, "write_report", lambda *_: {})
    sources = tuple(f"files:{tmp_path}/{name}.csv" for name in WORDS)
    settings = {"continual.sources": sources, "data.source": sources[1], "model.d_model": 16}
    settings |= {"data.seq_len": 24, "steps": 8, "evaluation.every": 0, "mesh.data": 1}
    return override(task_config, settings)


REPLAY = {"continual.replay_fraction": 0.25, "continual.memory_size": 10}
# On two devices, as its penalty's weights are shared out.
EWC = {"regularization.ewc": 5.0, "mesh.data": 2}


def of_clock(result):
    return {k: v for k, v in result.items() if k not in ("seconds", "tokens_per_second")}


@pytest.mark.parametrize("held", [REPLAY, pytest.param(EWC, marks=pytest.mark.slow)])
def test_a_chain_asks_every_task_after_each_and_resumes_to_the_same_numbers(
    chain, held, tmp_path, monkeypatch, losses, capsys
):
    config = override(chain, held)
    result = run_experiment(config, tmp_path / "whole")
    matrix = np.array(result["matrix"])
    assert matrix.shape == (2, 2) and result["steps"] == 16
    np.testing.assert_allclose(result["eval/accuracy"], matrix[1].mean())
    own = [json.loads((tmp_path / f"whole/{n}/result.json").read_text()) for n in (1, 2)]
    np.testing.assert_allclose(np.diag(matrix), [each["eval/accuracy"] for each in own])
    table = (tmp_path / "whole/continual.md").read_text()
    assert table in capsys.readouterr().out and "food.csv" in table
    assert run_experiment(config, tmp_path / "whole") == result

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        for reached in (1, 2):
            with pytest.raises(Interrupted):
                run_experiment(config, broken)
            assert (broken / str(reached)).exists() and not (broken / str(reached + 1)).exists()
    run_experiment(config, broken)
    # As if killed while the tasks were asked for the last time.
    (broken / "result.json").unlink()
    first, second = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text(first + second[:9])
    assert of_clock(run_experiment(config, broken)) == of_clock(result)
    for folder in (".", "1", "2"):
        assert losses(broken / folder) == losses(tmp_path / "whole" / folder)
    with pytest.raises(UserError, match="is a chain of runs; name one"):
        restore(broken)
    assert restore(broken / "2").corpus.manifest["source"].endswith("films.csv")


@pytest.mark.slow
def test_without_what_holds_on_a_run_of_a_chain_is_an_ordinary_run_from_the_one_before(
    chain, tmp_path
):
    result = run_experiment(chain, tmp_path / "chain")
    alone = override(chain, {"continual.sources": (), "init_from": str(tmp_path / "chain/1")})
    assert train(alone, tmp_path / "alone")["eval/accuracy"] == result["matrix"][1][1]
    jax.tree.map(
        np.testing.assert_array_equal,
        restore(tmp_path / "alone").params,
        restore(tmp_path / "chain/2").params,
    )


@pytest.mark.slow
def test_all_at_once_takes_the_steps_of_all_tasks_and_no_task_comes_before_another(chain, tmp_path):
    config = override(chain, {"continual.joint": True, "epochs": 1.5})
    result = run_experiment(config, tmp_path / "run")
    sizes = [
        each["splits"]["train"]["rows"]
        for each in json.loads((tmp_path / "run/data.json").read_text())["tasks"]
    ]
    assert result["steps"] == sum(max(1, round(1.5 * size / 16)) for size in sizes)
    assert np.shape(result["matrix"]) == (1, 2) and "eval/forgetting" not in result
    assert "| joint |" in (tmp_path / "run/continual.md").read_text()


@pytest.mark.slow
def test_importance_is_the_mean_over_rows_of_every_earlier_task(chain, tmp_path):
    config = override(chain, EWC)
    run_experiment(config, tmp_path / "chain")
    last = restore(tmp_path / "chain/2")
    config, data = last.config, last.corpus
    state = last.program.init_state(jax.random.key(0))
    with jax.set_mesh(last.program.mesh):
        found = with_importance(state, last.program, config, data).importance
    params = restore(tmp_path / "chain/1").params
    rows, expected = data.rows("train"), None
    for number in data.train_rows(0):
        row = {name: np.asarray(x)[None] for name, x in rows[int(number)].items()}
        slope = jax.grad(lambda p, row=row: jnp.sum(last.program.token_nll(p, row)))(params)
        square = jax.tree.map(lambda g: np.square(g) / len(data.train_rows(0)), slope)
        expected = square if expected is None else jax.tree.map(np.add, expected, square)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), found, expected
    )


def test_replayed_rows_are_training_rows_of_earlier_tasks_by_seed_and_step_alone(chain, tmp_path):
    config = override(chain, {"continual.stage": 2, "continual.replay_fraction": 0.25})
    data = prepare_task(config, tmp_path / "cache")
    assert {each["texts"][0].split()[1] for each in data.examples()} == {"films"}
    assert data.manifest["splits"]["train"]["rows"] == len(data.train_rows(1))
    earlier, own = set(data.train_rows(0).tolist()), set(data.train_rows(1).tolist())
    assert earlier | own == set(range(len(data.rows("train")))) and not earlier & own

    def batches(number, start=0, **knobs):
        groups = data.row_groups(override(config, knobs))
        found = train_batches(
            data.rows("train"), batch_size=16, seed=config.seed, start=start, groups=groups
        )
        return [(next(found)["row"] - 1).tolist() for _ in range(number)]

    whole = batches(15)
    assert all(len(earlier.intersection(batch)) == 4 for batch in whole)
    assert {row for batch in whole for row in batch} == earlier | own
    assert batches(3, start=5) == whole[5:8]
    few = {row for batch in batches(15, **{"continual.memory_size": 10}) for row in batch}
    assert len(few & earlier) == 10 and few >= own
    for batch in batches(3, **{"task.balanced": True}):
        assert data.array("classes")[batch].sum() == 8 and len(earlier.intersection(batch)) == 4


X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
W = np.array([0.5, -1.0, 2.0], np.float32)
Y = np.array([0, 1, 1, 0, 1, 0], np.float32)
SIGMOID = 1 / (1 + np.exp(-X @ W))
MODELS = {
    "a Gaussian around a line": (
        lambda p, rows: jnp.sum(0.5 * jnp.square(rows["x"] @ p["w"] - rows["y"])),
        X @ W - Y,
    ),
    "logistic regression": (
        lambda p, rows: jnp.sum(jnp.logaddexp(0.0, (1 - 2 * rows["y"]) * (rows["x"] @ p["w"]))),
        SIGMOID - Y,
    ),
}


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_fisher_information_of_linear_models_is_their_closed_form(name, together):
    nats, error = MODELS[name]
    found = squares(nats, {"w": jnp.asarray(W)}, {"x": X, "y": Y}, together)
    np.testing.assert_allclose(found["w"], np.square(error[:, None] * X).sum(axis=0), rtol=1e-5)


def test_forgetting_is_what_the_best_before_had_more():
    matrix = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.6]])
    np.testing.assert_allclose(forgetting(matrix), [0.2, 0.3])
    found = forgetting_metrics(matrix)
    np.testing.assert_allclose(found["eval/forgetting"], 0.25)
    np.testing.assert_allclose(found["eval/backward_transfer"], (0.7 - 0.9 + 0.5 - 0.8) / 2)
    errors = forgetting_metrics(1 - matrix, lower_is_better=True)
    assert errors == pytest.approx(found)
    assert forgetting_metrics(matrix[:1]) == {}
    sources = ("files:a/one.csv", "files:a/two.csv", "tfds:glue/rte")
    table = to_markdown(
        matrix, sources, PrimaryMetric("eval/accuracy", lower_is_better=False)
    ).splitlines()
    assert table[0] == "| after | 1 one.csv | 2 two.csv | 3 rte |"
    assert table[5] == "| forgetting | +0.2000 | +0.3000 |  |"
