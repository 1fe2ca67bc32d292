"""What is mixed is what the formula says, and a share of 1 mixes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from lm.model.transformer import Batch
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from lm.training.loss import training_loss
from lm.training.regularization.mixup import mixture, mixup

ROWS, LENGTH, LAYERS = 3, 6, 2
LENGTHS = np.array([6, 4, 5])
BATCH = Batch(
    inputs=jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 11,
    targets=jnp.array([[0], [2], [1]]),
    weights=jnp.array([[1.0], [1.0], [0.5]]),
    segments=jnp.array(np.arange(LENGTH) < LENGTHS[:, None], jnp.int32),
    positions=jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH)),
)
OTHER = jnp.array([1, 2, 0])
KEY = jax.random.key(1)


@functools.cache
def tiny():
    config = default.get_config()
    config.task.update(name="classification", pooling="mean")
    config.model.update(
        architecture="encoder", num_layers=LAYERS, d_model=8, num_heads=2, max_seq_len=8
    )
    config.model.init_std = 0.3
    config.output.tied = False
    model = build_model(config, 11, layout=Layout(LENGTH, 0, 1, num_classes=3))
    params = model.init(jax.random.key(0), BATCH, method="loss")["params"]
    return model, params, training_loss(model)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_a_share_of_1_is_the_row_itself(layer):
    _, params, plain = tiny()
    mixed = mixture(plain, jnp.array(1.0), OTHER, layer, LAYERS)(params, BATCH, KEY)
    np.testing.assert_allclose(mixed.nats, plain(params, BATCH, KEY).nats, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_a_share_of_0_is_another_row_of_the_same_length(layer):
    _, params, plain = tiny()
    same = BATCH.replace(segments=jnp.ones_like(BATCH.segments))
    mixed = mixture(plain, jnp.array(0.0), OTHER, layer, LAYERS)(params, same, KEY)
    np.testing.assert_allclose(mixed.nats, plain(params, same, KEY).nats, rtol=1e-5)


def test_what_the_head_sees_is_mixed_as_in_float64():
    model, params, plain = tiny()
    seen, _ = model.apply({"params": params}, BATCH, method="states")
    states, other, share = np.float64(seen)[:, 0], np.asarray(OTHER), 0.3
    z = (share * states + (1 - share) * states[other]) @ np.float64(params["head"]["table"]).T
    nats = np.log(np.exp(z).sum(-1, keepdims=True)) - z
    targets, weights = np.asarray(BATCH.targets)[:, 0], np.asarray(BATCH.weights)[:, 0]
    own, theirs = (nats[np.arange(ROWS), t] for t in (targets, targets[other]))
    expected = (share * weights * own + (1 - share) * weights[other] * theirs).sum()
    mixed = mixture(plain, jnp.array(share), OTHER, LAYERS, LAYERS)(params, BATCH, KEY)
    np.testing.assert_allclose(mixed.nats, expected, rtol=1e-5)
    np.testing.assert_allclose(mixed.weights.sum(), weights.sum(), rtol=1e-6)


def test_the_mixture_is_a_function_of_the_key():
    _, params, plain = tiny()
    habit = mixup(plain, 0.5, LAYERS, LAYERS)
    one, again, other = (habit(params, BATCH, jax.random.key(n)).nats for n in (1, 1, 2))
    assert one == again and one != other
