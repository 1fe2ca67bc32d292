"""Labelled texts that share rows of training teach what they teach alone, and fill the rows."""

import jax
import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.task_evaluation import metrics, predictions
from lm.experiment.validate import check
from lm.model.pooling import Mean, PooledTanh
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.tasks.packing import most_texts, share_rows
from lm.tasks.prepare import prepare_task
from lm.training.build_model import build_model
from lm.training.program import build_program
from tests.small_models import init

L = 40
TEXTS = ["a few words", "one", "and some more of them here", "two words", "x", "the last of these"]
KINDS = {
    "token_classification": {"task.name": "token_classification"},
    "pairs by their means": {"task.name": "classification", "task.pooling": "mean"},
    "pooled": {"task.name": "classification", "task.pooling": "pooler_tanh"},
    "first": {"task.name": "classification", "model.position_embedding": "relative"},
    "last, decoded": {"task.pooling": "last", "model.architecture": "decoder"},
    "numbers": {
        "task.name": "regression",
        "output.head": "squared",
        "model.position_embedding": "alibi",
    },
}


def alone(name):
    """A config, its objective, and the row of each text."""
    settings = {"task.name": "classification", "task.packing": True, "output.tied": False}
    settings |= {"model.architecture": "encoder", "model.num_layers": 1, "model.d_model": 16}
    settings |= {
        "model.num_heads": 2,
        "model.max_seq_len": L,
        "model.num_token_types": 2,
        "data.seq_len": L,
    }
    config = override(default.get_config(), settings | KINDS[name])
    pairs = "pairs" in name
    config.task.text = ("text", "text") if pairs else ("text",)
    task, tokenizer = build_task(config), ByteTokenizer()
    decoder = config.model.architecture == "decoder"
    layout = Layout(
        length=L, start=255, end=255, num_classes=3, texts=most_texts(L), decoder=decoder
    )
    rows = []
    for number, text in enumerate(TEXTS):
        words = text.split()
        example = {"place": "here", "texts": [text, "?"][: 1 + pairs], "words": words}
        tags = ["012"[len(word) % 3] for word in words]
        label = {"token_classification": tags, "regression": number / 2}.get(
            config.task.name, str(number % 3)
        )
        (encoded,) = task.tokenize([example | {"label": label}], tokenizer)
        rows += task.rows(example | {"label": label}, encoded, layout, {"0": 0, "1": 1, "2": 2})
    return config, TaskObjective(tokenizer, L, task, layout), rows


def stacked(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", KINDS)
def test_every_text_stands_whole_in_a_shared_row_with_its_targets(name):
    _, objective, rows = alone(name)
    shared = list(share_rows(rows, objective.layout))
    assert len(shared) <= len(rows) / 2
    found = []
    for row in shared:
        counted = row["weights"] > 0
        for text in range(1, row["segments"].max() + 1):
            own = np.flatnonzero(row["segments"] == text)
            if name == "token_classification":
                read = counted & np.isin(row["target_positions"], own)
            else:
                read = np.arange(len(counted)) == text - 1
            found.append([row["inputs"][own], row["types"][own], row["targets"][read]])
            found[-1].append(row["target_positions"][read] - own[0])
    for (inputs, types, targets, places), row in zip(found, rows, strict=True):
        real, counted = row["segments"] > 0, row["weights"] > 0
        np.testing.assert_array_equal(inputs, row["inputs"][real])
        np.testing.assert_array_equal(types, row["types"][real])
        np.testing.assert_array_equal(targets, row["targets"][counted])
        np.testing.assert_array_equal(places, row["target_positions"][counted])


@pytest.mark.parametrize(
    ("name", "pooling"), [("pairs by their means", Mean), ("pooled", PooledTanh)]
)
def test_a_text_is_pooled_from_its_own_states_wherever_it_stands(name, pooling):
    _, objective, rows = alone(name)
    shared = list(share_rows(rows, objective.layout))
    together, apart = (objective(stacked(each), jax.random.key(0)) for each in (shared, rows))
    # A state that tells what was read, and where in its text.
    both = (together, apart)
    states = [np.stack([x.inputs, x.positions], axis=-1).astype(np.float32) for x in both]
    module = pooling(2, jax.nn.initializers.normal(1e-2), np.float32)
    params = module.init(jax.random.key(0), states[1], apart)
    found, expected = (
        np.asarray(module.apply(params, state, batch)[0])[np.asarray(batch.weights) > 0]
        for state, batch in zip(states, (together, apart), strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_shared_row_has_the_loss_and_the_gradient_of_its_texts_alone(name):
    config, objective, rows = alone(name)
    model, key = build_model(config, 257, layout=objective.layout), jax.random.key(0)
    shared = list(share_rows(rows, objective.layout))
    together, apart = (objective(stacked(each), key) for each in (shared, rows))
    params = init(model, apart)

    @jax.jit
    def nats(params, batch):
        each = model.apply({"params": params}, batch, method="negative_log_likelihood")
        return (each * batch.weights).sum(), each

    (total, each), gradient = jax.value_and_grad(nats, has_aux=True)(params, together)
    (expected, one), wanted = jax.value_and_grad(nats, has_aux=True)(params, apart)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    counted, own = (np.asarray(batch.weights) > 0 for batch in (together, apart))
    np.testing.assert_allclose(each[counted], one[own], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradient, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "token_classification"])
def test_shared_rows_change_no_prediction_no_metric_and_no_loss_of_training(
    task_config, labelled, cache, name
):
    settings = {"task.name": name, "data.seq_len": 64}
    if name == "token_classification":
        settings |= {"task.text": ("tokens",), "task.label": "tags"}
        settings |= {"data.source": f"files:{labelled}/names.conll"}
    said, scores, losses, rows = [], [], [], []
    for packing in (False, True):
        config = override(task_config, settings | {"task.packing": packing})
        data = prepare_task(config, cache)
        program = build_program(config, data.tokenizer.vocab_size, layout=data.layout)
        train = data.rows("train")
        rows.append(len(train))
        with jax.set_mesh(program.mesh):
            params = program.init_state(jax.random.key(0)).all_params
            said.append(predictions(program, params, data, config))
            scores.append(metrics(data, said[-1]))
            losses.append(program.eval_loss(params, stacked([train[i] for i in range(len(train))])))
    assert rows[1] < rows[0] / 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    for one, other in zip(*said, strict=True):
        assert one["predicted"] == other["predicted"] and one["place"] == other["place"]
        assert one["confidence"] == pytest.approx(other["confidence"], rel=1e-5)


def test_held_out_texts_keep_rows_of_their_own_and_every_row_of_training_is_full(
    task_config, labelled, cache
):
    settings = {"task.name": "token_classification", "task.text": ("tokens",), "task.label": "tags"}
    settings |= {"data.source": f"files:{labelled}/names.conll", "task.packing": True}
    data = prepare_task(override(task_config, settings | {"data.seq_len": 64}), cache)
    train, held_out = data.rows("train"), data.rows("validation")
    assert {int(held_out[i]["segments"].max()) for i in range(len(held_out))} == {1}
    assert len(held_out) == len(data.examples())
    filled = [np.mean(train[i]["segments"] > 0) for i in range(len(train) - 1)]
    assert min(filled) > 0.6  # a sentence fills a quarter
    assert data.manifest["splits"]["train"]["rows"] == len(train)


BARRED = {
    "task.packing is of tasks classification, regression, token_classification, not of "
    "extractive_qa": {
        "task.name": "extractive_qa", "task.text": ("q", "c"),
    },
    "config.task.balanced goes by rows of one text each": {"task.balanced": True},
    "config.regularization.mixup goes by rows": {"regularization.mixup": 0.3},
    "config.regularization.token_deletion goes by rows": {"regularization.token_deletion": 0.1},
    "config.regularization.smart goes by rows": {"regularization.smart": 1.0},
    "config.regularization.freelb goes by rows": {"regularization.freelb": 2},
    "config.output.head = 'crf' goes by "
    "rows": {"task.name": "token_classification", "output.head": "crf"},
    "packs examples into shared rows": {"continual.sources": ("files:a.csv", "files:b.csv")},
}  # fmt: skip


@pytest.mark.parametrize("message", BARRED)
def test_what_goes_by_rows_of_one_text_is_refused_where_texts_share_them(task_config, message):
    with pytest.raises(UserError, match=message):
        check(override(task_config, {"task.packing": True, **BARRED[message]}))
