"""Schedules have the shapes and optimizers the updates that their names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import default
from lm.config import typed
from lm.training.optimizer import OPTIMIZERS, SCHEDULES, ScheduleConfig, decayed, schedule
from lm.training.validate import check
from tests.small_models import optimizer_of

PARAMS = {
    "embedding": jnp.ones((8, 4)),
    "stack": {
        "layers": {"in": {"kernel": jnp.ones((2, 4, 6)), "bias": jnp.ones((2, 6))}},
        "norm": {"scale": jnp.ones((2, 4))},
    },
}


def config_of(**settings):
    config = default.get_config()
    config.update_from_flattened_dict(settings)
    return config


def schedule_of(config, steps):
    return schedule(typed(ScheduleConfig, config, steps=steps))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_linearly_to_its_peak_and_does_not_rise_again(name):
    config = config_of(**{"schedule.name": name, "schedule.warmup_steps": 10})
    rates = np.asarray(jax.vmap(schedule_of(config, 100))(jnp.arange(101)))
    np.testing.assert_allclose(rates[:11], np.linspace(0, 2e-3, 11), rtol=1e-5)
    assert (np.diff(rates[10:]) <= 1e-9).all()


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("cosine", 0.1),
        ("linear", 0.1),
        ("warmup_stable_decay", 0.1),
        ("constant", 1.0),
        ("rsqrt", (1 + 89 / 10) ** -0.5),
    ],
)
def test_the_last_update_has_the_last_share_of_the_peak(name, end):
    config = config_of(**{"schedule.name": name, "schedule.warmup_steps": 10})
    np.testing.assert_allclose(schedule_of(config, 100)(99), 2e-3 * end, rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "linear", "warmup_stable_decay"])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.2), (0, 0.99), (7, 0.5), (8, 0.9), (3, 0.01)])
def test_however_long_warmup_and_decay_the_rate_falls_to_its_end(name, warmup, decay):
    settings = {
        "name": name,
        "warmup_steps": warmup,
        "decay_fraction": decay,
        "final_lr_ratio": 0.0,
    }
    config = config_of(**{f"schedule.{key}": value for key, value in settings.items()})
    rates = np.asarray(jax.vmap(schedule_of(config, 10))(jnp.arange(10)))
    np.testing.assert_allclose([rates[warmup], rates[-1]], [2e-3, 0.0], atol=1e-9)
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) <= 0).all()


def test_a_decay_that_warmup_leaves_no_room_for_takes_what_is_left():
    settings = {
        "name": "warmup_stable_decay",
        "warmup_steps": 80,
        "decay_fraction": 0.5,
        "final_lr_ratio": 0.0,
    }
    rate = schedule_of(config_of(**{f"schedule.{k}": v for k, v in settings.items()}), 100)
    np.testing.assert_allclose([rate(79), rate(80)], [2e-3 * 79 / 80, 2e-3], rtol=1e-5)
    np.testing.assert_allclose(rate(90), 2e-3 * 9 / 19, rtol=1e-5)
    np.testing.assert_allclose(rate(99), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_is_all_warmup_ends_at_the_peak(name):
    config = config_of(**{"schedule.name": name, "schedule.warmup_steps": 9})
    np.testing.assert_allclose(schedule_of(config, 10)(9), 2e-3, rtol=1e-5)


def test_warmup_stable_decay_is_stable_until_its_decay():
    config = config_of(**{"schedule.name": "warmup_stable_decay", "schedule.warmup_steps": 10})
    rate = schedule_of(config, 100)
    np.testing.assert_allclose([rate(10), rate(50), rate(79)], 2e-3, rtol=1e-5)
    assert rate(80) < rate(79)


def test_kernels_and_word_tables_decay_and_nothing_else():
    mask = decayed(PARAMS)
    assert mask["embedding"] and mask["stack"]["layers"]["in"]["kernel"]
    assert not mask["stack"]["layers"]["in"]["bias"] and not mask["stack"]["norm"]["scale"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_a_quadratic(name):
    rate = 0.3 if name == "sgd" else 0.03
    config = config_of(
        **{
            "optimizer.name": name,
            "optimizer.learning_rate": rate,
            "optimizer.weight_decay": 0.0,
            "schedule.warmup_steps": 0,
        }
    )
    tx = optimizer_of(config, 100)
    target = jax.tree.map(lambda p: p + jnp.linspace(-1, 1, p.size).reshape(p.shape), PARAMS)

    def loss(params):
        return sum(
            jnp.mean((a - b) ** 2)
            for a, b in zip(*map(jax.tree.leaves, (params, target)), strict=True)
        )

    @jax.jit
    def update(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(100):
        params, state = update(params, state)
    assert loss(params) < 0.3 * loss(PARAMS)


def test_weight_decay_shrinks_kernels_and_leaves_biases():
    config = config_of(**{"optimizer.learning_rate": 0.1, "schedule.warmup_steps": 0})
    tx = optimizer_of(config, 100)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    assert (updates["stack"]["layers"]["in"]["kernel"] < 0).all()
    assert (updates["stack"]["layers"]["in"]["bias"] == 0).all()


# All matrices, of which Muon takes the three in blocks.
MIXED = {
    "embedding": (8, 4),
    "inputs": {"projection": {"kernel": (4, 6)}},
    "stack": {
        "layer_0": {"gate": {"kernel": (4, 6), "bias": (6,)}, "lora": {"a_kernel": (4, 2)}},
        "shared_layer": {"out": {"kernel": (6, 4)}},
        "final_norm": {"scale": (4,)},
    },
    "encoder": {"layers": {"in": {"kernel": (2, 4, 6)}}},
    "head": {"prior": {"kernel": (4, 2)}, "fork": {"kernel": (4, 2)}, "table": (8, 4)},
    "pool": {"dense": {"kernel": (4, 4)}},
    "transform": {"in": {"kernel": (4, 4)}},
}


def test_muon_takes_the_matrices_of_blocks_and_leaves_the_rest_to_adamw_with_its_decay():
    draw = np.random.default_rng(0)
    shaped = jax.tree.map(
        lambda shape: jnp.asarray(draw.normal(size=shape), jnp.float32),
        MIXED,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    settings = {"optimizer.eps": 0.5, "optimizer.clip_norm": 0.0, "schedule.warmup_steps": 0}

    def updates(name, decay):
        more = {"optimizer.name": name, "optimizer.weight_decay": decay}
        tx = optimizer_of(config_of(**settings, **more), 10)
        state = tx.init(shaped)
        for _ in range(2):
            found, state = tx.update(jax.tree.map(jnp.sin, shaped), state, shaped)
        return flatten_dict(found, sep="/")

    muon, adamw, plain = updates("muon", 0.1), updates("adamw", 0.1), updates("muon", 0.0)
    own = {name for name in muon if not np.array_equal(muon[name], adamw[name])}
    kernels = ("layer_0/gate", "shared_layer/out")
    assert own == {f"stack/{k}/kernel" for k in kernels} | {"encoder/layers/in/kernel"}
    pulled = {name for name in muon if not np.array_equal(muon[name], plain[name])}
    assert pulled == {name for name, d in flatten_dict(decayed(shaped), sep="/").items() if d}


def test_muon_treats_stacked_layers_one_by_one():
    config = config_of(
        **{"optimizer.name": "muon", "schedule.warmup_steps": 0, "optimizer.clip_norm": 0.0}
    )
    kernels = jax.random.normal(jax.random.key(0), (2, 4, 6))

    def step(params):
        tx = optimizer_of(config, 10)
        updates, _ = tx.update(params, tx.init(params), params)
        return updates

    stacked = step({"stack": {"kernel": kernels}})["stack"]["kernel"]
    for layer in range(2):
        alone = step({"stack": {"kernel": kernels[layer]}})["stack"]["kernel"]
        np.testing.assert_allclose(stacked[layer], alone, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_without_gradient_are_finite_with_the_least_eps(name):
    config = config_of(
        **{"optimizer.name": name, "optimizer.eps": 1e-30, "schedule.warmup_steps": 0}
    )
    check(config)
    tx = optimizer_of(config, 10)
    grads = {"embedding": jnp.zeros((8, 4)).at[0].set(1.0)}
    updates, _ = tx.update(grads, tx.init(grads), grads)
    assert jnp.isfinite(updates["embedding"]).all()
