"""Regularisers follow their formulas, and change nothing where they are off or training is over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data.objectives.causal import causal
from lm.errors import UserError
from lm.training.build_model import build_model
from lm.training.config import resolve
from lm.training.program import build_program
from lm.training.regularization import noises
from lm.training.regularization.penalties import mixout, penalty

PARAMS = {
    "in": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([4.0, -1.0])},
    "embedding": jnp.array([[2.0, 0.0]]),
}
START = jax.tree.map(lambda p: p - 0.5, PARAMS)


def settings(**knobs):
    config = default.get_config()
    config.regularization.update(knobs)
    return resolve(config).regularization


def test_penalties_are_their_formulas():
    weights = np.array([1.0, -2.0, 0.5, 3.0, 2.0, 0.0])
    np.testing.assert_allclose(penalty(settings(l1=0.1), PARAMS, None), 0.1 * abs(weights).sum())
    np.testing.assert_allclose(penalty(settings(l2=0.2), PARAMS, None), 0.1 * (weights**2).sum())
    np.testing.assert_allclose(penalty(settings(l2_sp=0.4), PARAMS, START), 0.2 * 8 * 0.25)
    gradient = jax.grad(penalty, argnums=1)(settings(l2_sp=0.4), PARAMS, START)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.4 * 0.5, rtol=1e-6), gradient)


def test_elastic_weight_consolidation_is_its_formula_and_off_at_zero():
    fisher = jax.tree.map(lambda p: jnp.square(p) + 1.0, PARAMS)
    both = zip(
        jax.tree.leaves(PARAMS), jax.tree.leaves(START), jax.tree.leaves(fisher), strict=True
    )
    expected = sum(0.3 / 2 * np.sum(f * np.square(np.subtract(w, w0))) for w, w0, f in both)
    ewc = settings(ewc=0.3)
    np.testing.assert_allclose(penalty(ewc, PARAMS, START, fisher), expected, rtol=1e-6)
    gradient = jax.grad(penalty, argnums=1)(ewc, PARAMS, START, fisher)
    jax.tree.map(
        lambda g, f: np.testing.assert_allclose(g, 0.3 * f * 0.5, rtol=1e-6), gradient, fisher
    )
    assert ewc.has_penalties and ewc.needs_init_params
    off = settings(ewc=0.0)
    assert not off.has_penalties and not off.needs_init_params


def test_mixout_puts_a_share_of_the_kernels_back_and_keeps_the_mean():
    kernel = {"kernel": jnp.full((200, 200), 2.0), "bias": jnp.full(3, 2.0)}
    start = {"kernel": jnp.full((200, 200), 1.0), "bias": jnp.full(3, 1.0)}
    mixed = mixout(0.25, kernel, start, jax.random.key(0))
    np.testing.assert_array_equal(mixed["bias"], 2.0)
    # Elements put back are (w0 - p w0) / (1 - p) = w0.
    back = np.isclose(mixed["kernel"], 1.0)
    np.testing.assert_allclose(back.mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(mixed["kernel"].mean(), 2.0, atol=0.01)


def test_mixout_leaves_what_has_not_moved_as_it_is_in_bfloat16():
    kernel = {"kernel": jnp.ones((4, 4), jnp.bfloat16)}
    mixed = mixout(0.8, kernel, kernel, jax.random.key(0))["kernel"]
    assert mixed.dtype == jnp.bfloat16 and (mixed == 1).all()


def test_mixout_draws_for_a_kernel_what_it_draws_beside_any_other():
    kernel, key = jnp.arange(64.0).reshape(8, 8), jax.random.key(0)
    alone = {"m": {"kernel": kernel}, "z": {"kernel": kernel}}
    beside = alone | {"a": {"kernel": kernel}, "m": {"bias": kernel[0], "kernel": kernel}}
    first, second = (
        mixout(0.5, tree, jax.tree.map(jnp.zeros_like, tree), key) for tree in (alone, beside)
    )
    for name in alone:
        np.testing.assert_array_equal(first[name]["kernel"], second[name]["kernel"])
    assert (second["a"]["kernel"] != second["z"]["kernel"]).any()


def test_dropout_does_not_move_the_draws_of_stochastic_depth():
    batch = causal(ROWS)
    models = [
        model_of(**{"regularization.stochastic_depth": 0.5, "model.dropout": p})
        for p in (0.0, 1e-6)
    ]
    params = models[0].init(jax.random.key(0), batch, method="loss")
    one, other = (m.apply(params, batch, True, rngs={"dropout": jax.random.key(1)}) for m in models)
    np.testing.assert_allclose(one, other, atol=1e-4)


def model_of(**knobs):
    config = default.get_config()
    config.model.update(num_layers=2, d_model=8, num_heads=2, max_seq_len=16)
    config.update_from_flattened_dict(knobs)
    return build_model(config, 11)


ROWS = {"tokens": np.arange(4 * 9).reshape(4, 9) % 11, "segments": np.ones((4, 8), np.int32)}


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", ["stochastic_depth", "word_dropout"])
def test_noise_is_in_training_only_and_differs_by_draw(noise, scan):
    scanned = {"model.scan": scan}
    batch, plain = causal(ROWS), model_of(**scanned)
    noisy = model_of(**{f"regularization.{noise}": 0.5}, **scanned)
    params = plain.init(jax.random.key(0), batch, method="loss")
    first, second, other = (
        noisy.apply(params, batch, True, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    np.testing.assert_array_equal(noisy.apply(params, batch), plain.apply(params, batch))


def test_a_row_without_its_branches_is_its_words():
    batch = causal(ROWS)
    model = model_of(**{"regularization.stochastic_depth": 0.999999})
    params = model.init(jax.random.key(0), batch, method="loss")
    hidden = model.apply(params, batch, True, rngs={"dropout": jax.random.key(1)})
    words = params["params"]["embedding"][batch.inputs]
    words += params["params"]["inputs"]["position_embedding"][batch.positions]
    np.testing.assert_allclose(hidden, _layer_norm(words), atol=1e-3)


def _layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def test_off_is_absent():
    assert noises(settings()) == ()
    assert type(model_of()).__name__ == "Transformer"
    config = override(
        default.get_config(), {"model.num_layers": 1, "model.d_model": 8, "model.num_heads": 2}
    )
    assert build_program(override(config, {"mesh.data": 1}), 11).abstract_state.init_params is None


@pytest.mark.slow
def test_a_strong_pull_to_the_start_keeps_what_training_would_move():
    config = override(
        default.get_config(),
        {
            "model.num_layers": 1,
            "model.d_model": 8,
            "model.num_heads": 2,
            "data.seq_len": 8,
            "batch_size": 4,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 0.05,
            "optimizer.clip_norm": 0.0,
            "schedule.warmup_steps": 0,
            "regularization.mixout": 0.1,
            "mesh.data": 1,
        },
    )
    ways = []
    for pull in (0.0, 10.0):
        program = build_program(override(config, {"regularization.l2_sp": pull}), 11)
        state = program.init_state(jax.random.key(0))
        start = jax.tree.map(jnp.copy, state.init_params)
        for _ in range(5):
            state, metrics = program.train_step(state, ROWS, jax.random.key(1))
        assert ("train/penalty" in metrics) == (pull > 0)
        way = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), state.params, start)
        ways.append(float(sum(jax.tree.leaves(way))))
    assert 0 < ways[1] < 0.5 * ways[0]


IDLE = {"l1": ("bitfit", "prompt"), "l2": ("norms", "ia3"), "mixout": ("lora", "head", "bitfit")}


@pytest.mark.parametrize("name", IDLE)
def test_what_would_act_on_nothing_that_is_trained_is_refused(name):
    config = default.get_config()
    config.model.update(num_layers=1, d_model=8, num_heads=2, max_seq_len=24)
    config.data.seq_len = 4
    for method in ("full", *IDLE[name]):
        found = override(config, {f"regularization.{name}": 0.1, "finetuning.method": method})
        found = override(found, {"output.tied": False})
        if method == "full":
            build_program(found, 256)
            continue
        with pytest.raises(UserError, match=f"{name} = 0.1 acts on .*'{method}' trains none"):
            build_program(found, 256)
