"""Habits of the loss follow their formulas, and add nothing where nothing is to be regularised."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from scipy.special import rel_entr

from configs import default
from lm.checkpoints import teacher
from lm.checkpoints.teacher import teacher_config
from lm.config import override, to_dict
from lm.data.objectives.causal import causal
from lm.errors import UserError
from lm.training.build_model import build_model
from lm.training.loss import ForwardPass, training_loss
from lm.training.regularization.adversarial import Moved, drawn, freelb, smart, uphill
from lm.training.regularization.divergence import (
    distillation,
    rdrop,
    symmetric_kl,
    tempered_kl,
    total_divergence,
)
from lm.training.regularization.generalization_gap import adapted
from lm.training.train_state import TrainState
from lm.training.validate import check

SEGMENTS = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 0, 0]], np.int32)
BATCH = causal({"tokens": np.arange(2 * 7).reshape(2, 7) % 5, "segments": SEGMENTS})
KEY = jax.random.key(1)


@functools.cache
def tiny(dropout=0.0, token_chunk_size=None):
    """A model, its parameters, and its plain pass."""
    config = default.get_config()
    config.model.update(num_layers=1, d_model=8, num_heads=2, max_seq_len=8, dropout=dropout)
    config.model.init_std = 0.3
    config.output.token_chunk_size = token_chunk_size
    model = build_model(config, 5)
    params = model.init(jax.random.key(0), BATCH, method="loss")["params"]
    return model, params, training_loss(model)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_the_symmetric_divergence_is_that_of_float64():
    draw = np.random.default_rng(0)
    p, q = log_softmax(draw.normal(size=(2, 7, 5)) * 3)
    expected = (rel_entr(np.exp(p), np.exp(q)) + rel_entr(np.exp(q), np.exp(p))).sum(-1)
    np.testing.assert_allclose(symmetric_kl(jnp.array(p), jnp.array(q)), expected, rtol=1e-5)
    np.testing.assert_allclose(symmetric_kl(jnp.array([3.0]), jnp.array([1.0])), 4.0)


def test_a_comparison_in_chunks_is_that_of_the_whole():
    """Its gradient, too."""
    draw = np.random.default_rng(0)
    first, second, table = (jnp.array(draw.normal(size=size)) for size in ((7, 3), (7, 3), (3, 5)))

    def distance(table, chunks):
        def told(params, seen):
            return jax.nn.log_softmax(seen @ params)

        weights = jnp.arange(7.0)
        passes = [
            ForwardPass(jnp.zeros(()), weights, table, x, told, chunks) for x in (first, second)
        ]
        return total_divergence(symmetric_kl, *passes)

    found = [jax.value_and_grad(distance)(table, chunks) for chunks in (1, 3)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *found)


@pytest.mark.parametrize("token_chunk_size", [None, 5])
def test_rdrop_is_its_formula(token_chunk_size):
    _, params, plain = tiny(0.5, token_chunk_size)
    passes = [plain(params, BATCH, key) for key in (KEY, jax.random.fold_in(KEY, 3))]
    assert [each.chunks for each in passes] == [3 if token_chunk_size else 1] * 2
    p, q = (np.float64(each.predict(params, each.head_inputs)) for each in passes)
    apart = (rel_entr(np.exp(p), np.exp(q)) + rel_entr(np.exp(q), np.exp(p))).sum(-1)
    expected = np.mean([each.nats for each in passes]) + 0.5 * apart @ BATCH.weights.reshape(-1)
    found = rdrop(plain, 2.0)(params, BATCH, KEY).nats
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rdrop_without_dropout_is_nothing():
    _, params, plain = tiny()
    assert rdrop(plain, 2.0)(params, BATCH, KEY).nats == plain(params, BATCH, KEY).nats


def test_a_step_uphill_goes_along_the_slope_and_stays_within_the_radius():
    draw = np.random.default_rng(0)
    move, slope = draw.normal(size=(2, 3, 4, 5))
    move *= 0.1
    slope[1] = 0
    expected = (
        move + 0.5 * slope / np.maximum(np.linalg.norm(slope, axis=(1, 2)), 1e-9)[:, None, None]
    )
    length = np.linalg.norm(expected, axis=(1, 2))[:, None, None]
    expected *= np.minimum(1, 0.5 / length)
    found = uphill({"inputs": jnp.array(move)}, {"inputs": jnp.array(slope)}, 0.5)["inputs"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.linalg.norm(found, axis=(1, 2)) <= 0.5 + 1e-6).all()
    shrunk = min(1, 0.5 / np.linalg.norm(move[1]))
    np.testing.assert_allclose(found[1], move[1] * shrunk, rtol=1e-5)


def test_padding_does_not_move():
    model, *_ = tiny()
    found = np.abs(drawn(model, BATCH, 0.3, KEY)["inputs"])
    np.testing.assert_array_equal(found.max(-1) > 0, SEGMENTS > 0)
    assert (found <= 0.3 / np.sqrt(8 * (SEGMENTS > 0).sum(1))[:, None, None]).all()


def test_freelb_averages_the_passes_of_a_climb():
    """Each pass and its slope by hand."""
    model, params, plain = tiny()

    def loss(params, batch, key, step):
        return plain(params, batch, key, step).nats, jnp.sum(batch.weights)

    def at(params, moves):
        with nn.intercept_methods(Moved(moves)):
            return plain(params, BATCH, KEY).nats

    moves, values, grads = drawn(model, BATCH, 0.4, jax.random.fold_in(KEY, 4)), [], []
    for _ in range(3):
        value, (grad, slope) = jax.value_and_grad(at, argnums=(0, 1))(params, moves)
        moves = uphill(moves, slope, 0.4)
        values.append(value)
        grads.append(grad["embedding"])
    (nats, weight), found = freelb(loss, model, 3, 0.4)(params, BATCH, KEY, None)
    np.testing.assert_allclose(nats, np.mean(values), rtol=1e-5)
    np.testing.assert_allclose(found["embedding"], np.mean(grads, axis=0), rtol=1e-3, atol=1e-5)
    assert values[0] < values[1] and weight == BATCH.weights.sum()


def test_freelb_sums_gradients_of_bfloat16_parameters_in_float32():
    def loss(params, batch, key, step):
        return jnp.sum(params["w"]).astype(jnp.float32), jnp.sum(batch.weights)

    params = {"w": jnp.ones(3, jnp.bfloat16)}
    (nats, _), found = freelb(loss, tiny()[0], 10, 0.4)(params, BATCH, KEY, None)
    np.testing.assert_allclose([nats, *found["w"]], [3, 1, 1, 1], rtol=1e-6)


def test_smart_adds_more_than_a_random_move_would_and_nothing_without_a_radius():
    model, params, plain = tiny()
    before = plain(params, BATCH, KEY)
    added = smart(plain, model, 3.0, 0.1)(params, BATCH, KEY).nats - before.nats
    with nn.intercept_methods(Moved(drawn(model, BATCH, 0.1 * 3**0.5, KEY))):
        by_chance = total_divergence(symmetric_kl, before, plain(params, BATCH, KEY))
    assert added > 2 * 3.0 * by_chance > 0
    assert smart(plain, model, 3.0, 1e-30)(params, BATCH, KEY).nats == before.nats


def test_distillation_is_its_formula():
    draw = np.random.default_rng(0)
    p, q = log_softmax(draw.normal(size=(2, 7, 5)) * 3)
    soft = [np.exp(log_softmax(x / 3)) for x in (q, p)]
    expected = 9 * rel_entr(*soft).sum(-1)
    np.testing.assert_allclose(tempered_kl(3.0)(jnp.array(p), jnp.array(q)), expected, rtol=1e-4)
    np.testing.assert_allclose(tempered_kl(3.0)(jnp.array([3.0]), jnp.array([1.0])), 4.0)
    sure = jnp.array([[0.0, -jnp.inf]])
    np.testing.assert_allclose(tempered_kl(1.0)(jnp.log(jnp.array([[0.5, 0.5]])), sure), np.log(2))


def test_a_number_settles_between_its_label_and_its_teachers_by_the_teachers_share():
    def loss(p):
        taught = tempered_kl(2.0)(p, jnp.array([1.0]))
        return jnp.sum(0.75 * jnp.square(p - 3.0) + 0.25 * taught)

    np.testing.assert_allclose(jax.grad(loss)(jnp.array([0.75 * 3.0 + 0.25])), 0.0, atol=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    _, params, plain = tiny()
    said = plain(params, BATCH, KEY)
    loss = distillation(plain, said, 1.0, 3.0)
    nats, grads = jax.value_and_grad(lambda params: loss(params, BATCH, KEY).nats)(params)
    assert abs(nats) < 1e-4
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-4), grads)
    half = distillation(plain, said, 0.5, 3.0)(params, BATCH, KEY).nats
    np.testing.assert_allclose(half, said.nats / 2, rtol=1e-5)


def test_a_teacher_gets_no_gradient():
    _, params, plain = tiny()

    def of(teacher):
        return distillation(plain, plain(teacher, BATCH, KEY), 0.5, 2.0)(params, BATCH, KEY).nats

    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), jax.grad(of)(params))


def test_a_teacher_that_pools_elsewhere_is_refused(tmp_path):
    config = default.get_config()
    config.task.update(name="classification", pooling="last")
    config.output.tied = False
    config.regularization.update(teacher=str(tmp_path), distillation=0.5)
    for pooling in ("last", "mean", "first"):
        theirs = {
            "task.pooling": pooling,
            "regularization.teacher": "",
            "regularization.distillation": 0.0,
        }
        (tmp_path / "config.json").write_text(json.dumps(to_dict(override(config, theirs))))
        if pooling == "last":
            assert teacher_config(config).task.pooling == "last"
            continue
        with pytest.raises(UserError, match=f"has config.task.pooling = '{pooling}', and its stud"):
            teacher_config(config)


def test_penalties_follow_the_gap_by_the_same_factor_up_and_down():
    strength = 1.0
    for gap in (0.5, 0.5, -0.1):
        strength = adapted(strength, gap, 3.0, 0.2)
    np.testing.assert_allclose(strength, np.exp(3 * (0.3 + 0.3 - 0.3)))
    assert adapted(0.7, 0.2, 3.0, 0.2) == pytest.approx(0.7)
    assert adapted(1.0, 1e6, 1.0, 0.0) == pytest.approx(100)
    assert adapted(1.0, -1e6, 1.0, 0.0) == pytest.approx(0.01)


def test_a_teacher_that_changed_since_its_student_began_is_refused(monkeypatch, tmp_path):
    config = default.get_config()
    config.regularization.teacher = "runs/large"
    monkeypatch.setattr(teacher, "teacher_config", lambda config: config)

    def at(step, knows):
        monkeypatch.setattr(teacher, "_params", lambda *_: {"w": jnp.full(3, knows)})
        student = SimpleNamespace(teacher="a program")
        state = TrainState(step, {}, {}, None, True)
        return teacher.with_teacher(state, student, config, None, epath.Path(tmp_path)).teacher

    assert at(0, 1.0)["w"][0] == at(7, 1.0)["w"][0] == 1
    with pytest.raises(UserError, match=r"trained on runs/large .*restore that teacher"):
        at(7, 2.0)


MISTAKES = {
    "multiplies penalties, and all are 0": {"regularization.penalty_adaptation": 1.0},
    "penalty_adaptation = 1.0 follows evaluations": {
        "regularization.penalty_adaptation": 1.0,
        "regularization.l2": 1.0,
        "evaluation.every": 0,
    },
    "rdrop = 1.0 compares two draws": {"regularization.rdrop": 1.0},
    "has none of outside its support": {"regularization.smart": 1.0, "output.head": "sparsemax"},
    "set one of them to 0": {"regularization.smart": 1.0, "regularization.freelb": 2},
    "rdrop = -1.0: must be at least 0": {"regularization.rdrop": -1.0},
    "must be above pruning_start": {"regularization.pruning_end": 0.05},
    "did you mean movement": {"regularization.pruning_criterion": "movements"},
    "trains none; use full": {
        "regularization.sparsity": 0.5,
        "finetuning.method": "lora",
        "init_from": "x",
    },
    "what is pruned is not 0": {"regularization.sparsity": 0.5, "optimizer.ema_decay": 0.9},
    "one before regularization.sparsity was": {
        "regularization.sparsity": 0.5,
        "evaluation.patience": 2,
    },
    "mixes rows that have one target": {"regularization.mixup": 0.2},
    "a language model has targets at": {"regularization.token_deletion": 0.1},
    "masks tokens already": {
        "regularization.mask_spans": 0.1,
        "objective": "masked",
        "model.architecture": "encoder",
    },
    "distillation = 0.5 go together": {"regularization.distillation": 0.5},
    "distillation = 1.5: must be at least 0 and at most 1": {"regularization.distillation": 1.5},
    "adversarial_radius = 0.0: must be above 0": {"regularization.adversarial_radius": 0.0},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_impossible_habits_are_refused_in_one_line(message):
    config = default.get_config()
    config.update_from_flattened_dict(MISTAKES[message])
    with pytest.raises(UserError) as caught:
        check(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
