"""One update is the same however it is divided: over parts of a batch or over a mesh of devices."""

import functools
import itertools
import json
import sys
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import clm
from lm.attention import ATTENTIONS
from lm.config import override, to_dict
from lm.devices import sharding
from lm.errors import UserError
from lm.training.nan_check import first_nonfinite
from lm.training.profiling.flops import flops_per_token
from lm.training.program import build_program
from lm.training.train_state import TrainState

STEPS = 10


def some_rows(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.batch_size, config.data.seq_len)
    tokens = rng.integers(0, 255, (shape[0], shape[1] + 1)).astype(np.int32)
    segments = np.cumsum(rng.random(shape) < 0.1, axis=1).astype(np.int32) + 1
    segments[0, 20:] = 0
    return {"tokens": tokens, "segments": segments, "bytes": np.full(shape[0], 32, np.int32)}


def run(config, steps=STEPS, vocab_size=256):
    """Losses of some steps, the final state, and the program."""
    program = build_program(config, vocab_size)
    losses = []
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))
        for step in range(steps):
            rows = sharding.global_batch(program.mesh, some_rows(config, step))
            state, metrics = program.train_step(state, rows, jax.random.key(1))
            losses.append(float(metrics["train/loss"]))
    return losses, state, program


# Data, fsdp, sequence, tensor.
MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 1, 4), (2, 1, 4, 1), (2, 1, 2, 2)]
KINDS = {
    "decoder": {},
    "prefix": {"objective": "prefix"},
    "encoder": {"objective": "masked", "model.architecture": "encoder"},
    "encoder_decoder": {"objective": "span", "model.architecture": "encoder_decoder"},
}


@functools.cache
def losses_of_one_device(config, steps):
    return run(override(ConfigDict(json.loads(config)), {"mesh.data": 1}), steps)[0]


def check_mesh(config, mesh, steps=STEPS):
    """Compares the losses of a mesh with those of one device; gives the state of the mesh."""
    sizes = {f"mesh.{axis}": size for axis, size in zip(sharding.AXES, mesh, strict=True)}
    sharded, state, _ = run(override(config, sizes), steps)
    single = losses_of_one_device(json.dumps(to_dict(config)), steps)
    np.testing.assert_allclose(sharded, single, atol=1e-5)
    return state


def test_a_mesh_of_all_axes_but_sequence_gives_the_losses_of_one_device(small_config):
    state = check_mesh(small_config, (2, 2, 1, 2))
    table = state.params["embedding"]
    assert table.addressable_shards[0].data.size == table.size // (2 * 2)
    moment = state.opt_state[1][0].mu["embedding"]
    assert moment.sharding == table.sharding


def test_an_uneven_vocabulary_is_trained_whole_and_its_table_split_by_features(small_config):
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 4}
    sharded, state, _ = run(override(small_config, mesh), 3, 257)
    single, _, _ = run(override(small_config, {"mesh.data": 1}), 3, 257)
    np.testing.assert_allclose(sharded, single, atol=1e-5)
    table = state.params["embedding"]
    assert table.shape == (257, 32) and table.addressable_shards[0].data.shape == (257, 32 // 8)


@pytest.mark.parametrize(
    ("kind", "mesh", "settings"),
    [
        ("decoder", (1, 2, 2, 2), {"attention.weighting": "sink", "model.scan": True}),
        ("encoder", (2, 1, 2, 1), {"attention.weighting": "sigmoid"}),
        (
            "encoder_decoder",  # whose decoder's length does not divide
            (1, 1, 2, 1),
            {"encoder_attention.weighting": "sparsemax", "cross_attention.weighting": "sigmoid"},
        ),
    ],
)
def test_rows_split_over_devices_give_the_losses_of_one_device(small_config, kind, mesh, settings):
    check_mesh(override(small_config, KINDS[kind] | settings), mesh, 4)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("weighting", ["softmax", "sigmoid", "entmax15", "sparsemax"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mesh_gives_the_losses_of_one_device(small_config, kind, weighting, mesh):
    settings = {"attention.weighting": weighting, "model.num_layers": 2, "steps": 20}
    check_mesh(override(small_config, KINDS[kind] | settings), mesh, 20)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ATTENTIONS)
def test_every_mechanism_gives_the_losses_of_one_device_with_its_rows_split(
    small_config, mechanism
):
    settings = {"attention.mechanism": mechanism, "model.position_embedding": "learned"}
    check_mesh(override(small_config, settings), (2, 1, 4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_losses_of_one_device_on_clm_tiny(mesh):
    check_mesh(clm.get_config("tiny"), mesh)


def test_the_size_of_micro_batches_does_not_change_the_update(small_config):
    # Not every part has as many words that are hidden.
    small_config.update(objective="masked")
    small_config.model.architecture = "encoder"
    small_config.mesh.update(data=2, fsdp=2, tensor=2)
    whole, state, _ = run(small_config, 3)
    parts, accumulated, _ = run(override(small_config, {"grad_accum_steps": 2}), 3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, accumulated.params
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 20, "mesh.data": 8},
            "20 is not divisible by 8 devices (data x fsdp); use 16 or 24",
        ),
        ({"mesh.data": 8, "grad_accum_steps": 2}, "8 devices (data x fsdp) x 2 parts; use 16"),
        ({"mesh.data": 3}, "3x1x1x1 does not fit 8 devices"),
        ({"mesh.data": -1, "mesh.fsdp": -1}, "-1 at most once"),
        (
            {"mesh.data": 1, "mesh.fsdp": 8, "model.d_model": 36},
            "36 is not divisible by config.mesh.fsdp = 8",
        ),
        (
            {"mesh.data": 2, "mesh.sequence": 4, "data.seq_len": 30},
            "config.data.seq_len = 30 is not divisible by config.mesh.sequence = 4; use 28 or 32",
        ),
    ],
)
@pytest.mark.usefixtures("all_devices")
def test_sizes_that_do_not_divide_are_refused_by_name(small_config, settings, message):
    with pytest.raises(UserError) as caught:
        build_program(override(small_config, settings), 256)
    assert message in str(caught.value)


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_draw_of_a_step_has_a_key_of_its_own(small_config, monkeypatch, parts):
    habits = {"mixout": 0.1, "rdrop": 1.0, "mask_spans": 0.1}
    settings = {"grad_accum_steps": parts, **{f"regularization.{k}": v for k, v in habits.items()}}
    program = build_program(override(small_config, settings), 256)
    fold_in, places = jax.random.fold_in, {}

    def watched(key, number):
        caller = sys._getframe(1)
        if caller.f_globals["__name__"].startswith("lm."):
            # A number that is no constant may be any.
            folds = places.setdefault(id(key), (key, []))[1]
            fixed = number if isinstance(number, int) else None
            folds.append((fixed, f"{caller.f_code.co_filename}:{caller.f_lineno}"))
        return fold_in(key, number)

    monkeypatch.setattr(jax.random, "fold_in", watched)
    jax.eval_shape(
        program.train_step, program.abstract_state, some_rows(small_config), jax.random.key(1)
    )
    assert len(places) > 3
    for _, folds in places.values():
        for (one, here), (other, there) in itertools.combinations(folds, 2):
            assert here == there or (one != other and None not in (one, other)), (here, there)


def test_the_moving_average_follows_the_parameters_and_those_of_a_mechanism(small_config):
    small_config.attention.mechanism = "gated"
    small_config.schedule.warmup_steps = 0  # whose first step would move nothing
    _, state, _ = run(override(small_config, {"optimizer.ema_decay": 0.5}), 1)
    start = build_program(small_config, 256).init_state(jax.random.key(0)).params
    expected = jax.tree.map(
        lambda a, b: 0.5 * np.asarray(a) + 0.5 * np.asarray(b), start, state.params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema_params, expected
    )
    assert state.eval_params is state.ema_params
    gate = ("stack", "layer_0", "attention", "mechanism", "gate", "kernel")
    before, after = (flatten_dict(tree)[gate] for tree in (start, state.params))
    assert (before != after).any()


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(small_config):
    small_config.model.num_layers = 2
    program = build_program(small_config, 256)
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))
        bad = state.params["stack"]["layer_1"]["feed_forward"]["out"]["kernel"]
        bad = bad.at[0, 0].set(jnp.inf)
        rows = sharding.global_batch(program.mesh, some_rows(small_config))
        params = jax.tree.map(jnp.copy, state.params)
        params["stack"]["layer_1"]["feed_forward"]["out"]["kernel"] = bad
        state = state.replace(params=jax.tree.map(jnp.copy, params))
        state, _ = program.train_step(state, rows, jax.random.key(1))
        assert not bool(state.finite) and int(state.step) == 0
        jax.tree.map(np.testing.assert_array_equal, state.params, params)
        name = first_nonfinite(program, state, rows, jax.random.key(1))
        assert "parameter stack/layer_1/feed_forward/out/kernel" in name
        # Finite parameters whose product overflows: the module's output is what goes wrong.
        params["stack"]["layer_1"]["feed_forward"]["out"]["kernel"] = jnp.full_like(bad, 3e38)
        params["stack"]["layer_1"]["feed_forward"]["in"]["kernel"] *= 1e3
        state = state.replace(params=params)
        name = first_nonfinite(program, state, rows, jax.random.key(1))
        assert "output of stack/layer_1/feed_forward/out" in name


class Fine(nn.Module):
    """A model whose plain pass never fails."""

    @nn.compact
    def loss(self, batch):
        return nn.Dense(1)(batch)


@pytest.mark.parametrize(
    ("nats", "slope", "message"),
    [
        (jnp.inf, 1.0, "the step's loss [], 1 of 1 elements"),
        (1.0, jnp.nan, "gradient of kernel [2], 1 of 2 elements"),
        (1.0, 1.0, "a penalty, or the sum"),
    ],
)
def test_what_goes_wrong_in_the_habits_of_a_step_alone_is_named(nats, slope, message):
    def gradient(state, batch, key):
        return (jnp.array(nats), 1.0), {"kernel": jnp.array([0.0, slope])}

    rows: Any = jnp.ones((1, 3))
    params = Fine().init(jax.random.key(0), rows, method="loss")["params"]
    program: Any = SimpleNamespace(
        model=Fine(), make_batch=lambda rows, key: rows, loss_and_grad=gradient
    )
    state: Any = TrainState(jnp.zeros(()), params, (), None, jnp.array(True))
    assert first_nonfinite(program, state, rows, jax.random.key(1)).startswith(message)


@pytest.mark.parametrize("scan", [False, True])
def test_flops_are_those_of_the_matrix_products(small_config, scan):
    settings = {"model.scan": scan, "model.num_layers": 2}
    program = build_program(override(small_config, settings), 256)
    length, features = small_config.data.seq_len, small_config.model.d_model
    layer = 2 * 12 * features**2 + 2 * 2 * length * features
    expected = 3 * (2 * layer + 2 * 256 * features)
    assert flops_per_token(program) == expected
    with jax.set_mesh(program.mesh):  # of all devices
        assert flops_per_token(program) == expected
    with jax.sharding.use_abstract_mesh(sharding.described_mesh("TPU v5 lite", "tpu")):
        assert flops_per_token(program) == expected


def test_flops_are_per_token_of_all_the_texts_of_a_row():
    rows = {"segments": jax.ShapeDtypeStruct((1, 3, 4), jnp.float32)}
    program: Any = SimpleNamespace(
        objective=SimpleNamespace(abstract_rows=lambda size: rows, length=4),
        token_nll=lambda table, rows: rows["segments"] @ table,
        abstract_params=jax.ShapeDtypeStruct((4, 5), jnp.float32),
    )
    assert flops_per_token(program) == 3 * (2 * 3 * 4 * 5) / (3 * 4)
