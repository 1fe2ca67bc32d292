"""Parameters in bfloat16 learn as those in float32 do: what is summed or averaged over time is not
rounded to their 8 bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.data.objectives.causal import causal
from lm.training.build_model import build_model
from lm.training.config import resolve
from lm.training.mixed_precision import apply_updates, in_float32, stochastic_round, update_ema
from lm.training.optimizer import OPTIMIZERS
from lm.training.program import build_program
from lm.training.train_state import TrainState
from lm.training.train_step import build_loss_and_grad
from tests.small_models import optimizer_of

PARAMS = {
    "embedding": jnp.ones((8, 4), jnp.bfloat16),
    "stack": {"layer_0": {"in": {"kernel": jnp.ones((128, 128), jnp.bfloat16)}}},
}


def config_of(**settings):
    config = default.get_config()
    plain = {"schedule.name": "constant", "schedule.warmup_steps": 0, "optimizer.clip_norm": 0.0}
    config.update_from_flattened_dict(
        plain | {"optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1.0} | settings
    )
    return config


def widest(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} - {"int32", "bool"}


def after(tx, params, slopes):
    """The update that the last of these slopes, the same for all elements, makes."""

    def one(carry, slope):
        grads = jax.tree.map(lambda p: jnp.full_like(p, slope), params)
        updates, state = tx.update(grads, carry, params)
        return state, updates

    _, updates = jax.jit(lambda s: jax.lax.scan(one, tx.init(params), s))(jnp.asarray(slopes))
    return jax.tree.map(lambda u: u[-1], updates)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_keeps_what_it_averages_in_float32(name):
    tx = optimizer_of(config_of(**{"optimizer.name": name, "regularization.sparsity": 0.5}), 100)
    updates, state = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), PARAMS)
    assert widest(jax.eval_shape(tx.init, PARAMS)) == widest(state) == {"float32"}
    assert widest(updates) == {"float32"}


# The second moment is b2^5000 (1 - b2^20) 100 + (1 - b2^5000) 1e-4, and the first 0.01.
@pytest.mark.parametrize(("b2", "update"), [(0.999, 0.0861), (0.95, 1.0)])
def test_the_second_moment_of_bfloat16_gradients_forgets_as_it_should(b2, update):
    tx = optimizer_of(config_of(**{"optimizer.b2": b2}), 10_000)
    found = after(tx, {"embedding": jnp.ones((2,), jnp.bfloat16)}, [10.0] * 20 + [0.01] * 5_000)
    np.testing.assert_allclose(found["embedding"], -update, rtol=5e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bfloat16_parameters_are_moved_as_those_in_float32(name):
    tx = optimizer_of(config_of(**{"optimizer.name": name}), 1_000)
    slopes = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, 300), jnp.bfloat16)
    # Only Adafactor needs matrices of 128 x 128, which it factors.
    params = PARAMS if name == "adafactor" else jax.tree.map(lambda p: p[:16, :16], PARAMS)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    one, other = after(tx, params, slopes), after(tx, wide, slopes.astype(jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_the_state_of_a_run_in_bfloat16_averages_in_float32(small_config):
    changes = {"model.param_dtype": "bfloat16", "optimizer.ema_decay": 0.99}
    state = build_program(override(small_config, changes), 256).abstract_state
    assert widest(state.params) == {"bfloat16"}
    assert widest(state.ema_params) == widest(state.opt_state) == {"float32"}
    assert widest(state.eval_params) == {"float32"}


def test_steps_below_the_spacing_of_bfloat16_add_up():
    params = {"a": jnp.ones((4_000,), jnp.bfloat16), "b": jnp.ones((4_000,), jnp.bfloat16)}

    def one(params, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        return apply_updates(params, {"a": -1e-4, "b": -1e-4}, key), None

    moved, _ = jax.jit(lambda p: jax.lax.scan(one, p, jnp.arange(1_000)))(params)
    for leaf in jax.tree.leaves(moved):
        # Rounded to the nearest, none would ever leave 1.
        np.testing.assert_allclose(np.asarray(leaf, np.float64).mean(), 0.9, atol=2e-3)
    assert (moved["a"] != moved["b"]).any()


@pytest.mark.parametrize("x", [1.0, 0.0, -3.5, np.inf, -np.inf, np.nan])
def test_what_bfloat16_holds_is_not_rounded(x):
    rounded = stochastic_round(jnp.full((64,), x, jnp.float32), jax.random.key(0))
    np.testing.assert_array_equal(rounded.astype(jnp.float32), jnp.full((64,), x))


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_the_average_of_parameters_that_stay_is_what_they_are(decay):
    params = {"x": jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.bfloat16)}

    def step(average, _):
        return update_ema(average, params, decay), None

    found, _ = jax.lax.scan(step, {"x": jnp.zeros(50)}, length=round(20 / (1 - decay)))
    np.testing.assert_allclose(found["x"], in_float32(params)["x"], rtol=1e-4)


def test_stochastic_rounding_is_to_a_neighbour_and_right_on_average():
    x = jnp.full((20_000,), -1.001, jnp.float32)
    rounded = np.asarray(stochastic_round(x, jax.random.key(0)), np.float64)
    assert set(rounded) == {-1.0, -1.0078125}
    np.testing.assert_allclose(rounded.mean(), -1.001, atol=1e-4)


def test_the_gradient_of_a_frequent_word_is_summed_in_float32(small_config):
    """Word 3 alone stands at 7 of 32 places of a row, and the batch comes in two parts."""
    config = override(small_config, {"grad_accum_steps": 2, "model.d_model": 8})
    tokens = jnp.zeros((8, 33), jnp.int32).at[:, ::5].set(3)
    batch = causal({"tokens": tokens, "segments": jnp.ones((8, 32), jnp.int32)})
    shapes = build_program(config, 256).abstract_state.params
    draw = np.random.default_rng(0)
    narrow = jax.tree.map(lambda p: jnp.asarray(draw.normal(size=p.shape), jnp.bfloat16), shapes)

    def slopes(dtype):
        model = build_model(override(config, {"model.param_dtype": dtype}), 256)
        own = jax.tree.map(lambda p: p.astype(dtype), narrow)
        state = TrainState(jnp.zeros((), int), own, None, None, jnp.array(True))
        loss_and_grad = build_loss_and_grad(resolve(config), model, ByteTokenizer())
        return loss_and_grad(state, batch, jax.random.key(0))[1]["embedding"]

    one, other = jax.jit(lambda: (slopes("bfloat16"), slopes("float32")))()
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())
