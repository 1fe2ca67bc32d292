"""Layers learn at the rates and from the steps that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from lm.model.resolve import model_config
from lm.training.layerwise_lr import depths, layer_decay, shared_layer_rate, unfreezing
from tests.small_models import optimizer_of

L = 3
KERNEL = jnp.ones((2, 2))
UNROLLED = {
    "embedding": KERNEL,
    "inputs": {"position_embedding": KERNEL},
    "stack": {
        **{f"layer_{i}": {"in": {"kernel": KERNEL}} for i in range(L)},
        "final_norm": {"scale": jnp.ones(2)},
    },
    "head": {"table": KERNEL},
}
SCANNED = UNROLLED | {
    "stack": {
        "layers": {"in": {"kernel": jnp.ones((L, 2, 2))}},
        "final_norm": {"scale": jnp.ones(2)},
    }
}


def test_depth_counts_from_the_words_to_the_head():
    found = depths(UNROLLED, L)
    assert found["embedding"] == found["inputs"]["position_embedding"] == 0
    assert [found["stack"][f"layer_{i}"]["in"]["kernel"] for i in range(L)] == [1, 2, 3]
    assert found["stack"]["final_norm"]["scale"] == found["head"]["table"] == 4
    stacked = depths(SCANNED, L)["stack"]["layers"]["in"]["kernel"]
    np.testing.assert_array_equal(stacked.ravel(), [1, 2, 3])
    # Where only the last two of the scanned layers are trained, those are at hand.
    last = {"stack": {"layers": {"in": {"kernel": jnp.ones((2, 2, 2))}}}}
    np.testing.assert_array_equal(
        depths(last, L)["stack"]["layers"]["in"]["kernel"].ravel(), [2, 3]
    )


@pytest.mark.parametrize("tree", [UNROLLED, SCANNED])
def test_updates_decay_from_the_head_to_the_words(tree):
    tx = layer_decay(optax.sgd(1.0), 0.5, L)
    updates, _ = tx.update(tree, tx.init(tree), tree)
    expected = jax.tree.map(
        lambda x, d: np.broadcast_to(-(0.5 ** (L + 1 - np.asarray(d, float))), x.shape),
        tree,
        depths(tree, L),
    )
    jax.tree.map(np.testing.assert_allclose, updates, expected)


def test_the_one_layer_of_all_learns_as_the_first_and_a_run_says_so():
    shared = {"stack": {"shared_layer": {"in": {"kernel": KERNEL}}}}
    tx = layer_decay(optax.sgd(1.0), 0.5, L)
    updates, _ = tx.update(shared, tx.init(shared), shared)
    np.testing.assert_array_equal(updates["stack"]["shared_layer"]["in"]["kernel"], -(0.5**L))
    config = default.get_config()
    config.model.num_layers = L
    assert shared_layer_rate(0.5, model_config(config).stack) == ""
    config.model.share_layers = True
    stack = model_config(config).stack
    assert shared_layer_rate(1.0, stack) == ""
    said = "; the shared layer learns at 0.5^3 = 0.125 of the rate"
    assert shared_layer_rate(0.5, stack) == said


@pytest.mark.parametrize("tree", [UNROLLED, SCANNED])
def test_layers_begin_to_learn_one_by_one_from_the_head(tree):
    tx = unfreezing(optax.adamw(0.1), 2, L)
    params, state = tree, tx.init(tree)
    for step in range(2 * (L + 2)):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        jax.tree.map(
            lambda u, d: np.testing.assert_array_equal(
                u != 0,
                np.broadcast_to(np.asarray(d) >= L + 1 - step // 2, u.shape),  # noqa: B023
            ),
            updates,
            depths(tree, L),
        )
        params = optax.apply_updates(params, updates)


def test_what_is_off_is_not_there():
    config = default.get_config()
    config.model.num_layers = L
    plain = jax.tree.structure(optimizer_of(config, 100).init(UNROLLED))
    config.optimizer.layerwise_lr_decay = 1.0
    config.schedule.unfreeze_every = 0
    assert jax.tree.structure(optimizer_of(config, 100).init(UNROLLED)) == plain
    config.optimizer.layerwise_lr_decay = 0.9
    config.schedule.unfreeze_every = 5
    assert jax.tree.structure(optimizer_of(config, 100).init(UNROLLED)) != plain
