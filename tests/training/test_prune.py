"""Kernels are pruned as the schedule and the score say, element by element, and stay so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from lm.config import override
from lm.training.config import resolve
from lm.training.pruning import SCORES, Sparsity, pruned_share, pruning

SCHEDULE = Sparsity(0.7, start=4, end=24)
STEPS, RATE = 40, 0.1
DRAW = np.random.default_rng(0)
KERNEL = DRAW.normal(size=(5, 8))
GRADS = DRAW.normal(size=(STEPS, 5, 8))


def tree(kernel):
    return {"stack": {"layer_0": {"in": {"kernel": kernel, "bias": jnp.ones(8)}}}}


def trained(by, kernel=KERNEL, grads=GRADS):
    """The kernel after each of the updates."""
    tx = pruning(optax.sgd(RATE), SCHEDULE, SCORES[by])
    params = tree(jnp.array(kernel))

    @jax.jit
    def update(params, state, grad):
        updates, state = tx.update(tree(grad), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for grad in grads:
        params, state = update(params, state, jnp.array(grad))
        yield params["stack"]["layer_0"]["in"]


def share(t):
    return 0.7 * (1 - (1 - np.clip((t - 4) / 20, 0, 1)) ** 3)


def by_hand(by):
    """The same in float64, with the definitions of the papers."""
    dense, mask, scores = KERNEL.copy(), np.ones(KERNEL.shape, bool), 0.0
    for t, grad in enumerate(GRADS, start=1):
        moved = scores - dense * grad
        dense -= RATE * grad * mask
        scores = abs(dense) if by == "magnitude" else moved
        if 4 <= t <= 24:
            mask = np.ones(KERNEL.size, bool)
            mask[np.argsort(scores, axis=None)[: round(share(t) * KERNEL.size)]] = False
            mask = mask.reshape(KERNEL.shape)
        yield dense * mask


@pytest.mark.parametrize("by", SCORES)
def test_every_update_is_that_of_float64(by):
    for found, expected in zip(trained(by), by_hand(by), strict=True):
        np.testing.assert_allclose(found["kernel"], expected, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(found["kernel"]) == 0, expected == 0)
        assert (found["bias"] != 0).all()


@pytest.mark.parametrize("by", SCORES)
def test_the_share_is_reached_exactly_and_what_is_pruned_then_stays_zero(by):
    zeros = [np.asarray(found["kernel"]) == 0 for found in trained(by)]
    assert [int(z.sum()) for z in zeros] == [round(share(t) * 40) for t in range(1, STEPS + 1)]
    for later in zeros[23:]:
        np.testing.assert_array_equal(later, zeros[23])
    assert zeros[-1].sum() == 28


def test_movement_scores_descend_behind_a_straight_through_mask():
    """Scores are learned like weights, by -dL/dS, as the paper defines them (2005.07683)."""
    inputs, wanted = DRAW.normal(size=(3, 5)), DRAW.normal(size=(3, 8))
    tx = pruning(optax.sgd(RATE), Sparsity(0.5, 1, 9), SCORES["movement"])
    params = tree(jnp.array(KERNEL))
    state = tx.init(params)

    def loss(weight, scores, mask):
        through = scores + jax.lax.stop_gradient(mask - scores)
        return jnp.mean(jnp.square(inputs @ (weight * through) - wanted))

    weight, scores = jnp.array(KERNEL), jnp.zeros(KERNEL.shape)
    for _ in range(12):
        mask = state.mask["stack"]["layer_0"]["in"]["kernel"]
        slopes = jax.grad(loss, argnums=(0, 1))(weight, scores, mask)
        weight, scores = weight - RATE * slopes[0], scores - slopes[1]
        left = params["stack"]["layer_0"]["in"]["kernel"]
        seen = jax.grad(loss)(left, jnp.zeros_like(left), jnp.ones_like(left))
        updates, state = tx.update(tree(seen), state, params)
        params = optax.apply_updates(params, updates)
        found = state.scores["stack"]["layer_0"]["in"]["kernel"]
        np.testing.assert_allclose(found, scores, atol=1e-5)


def test_equal_scores_do_not_prune_more():
    *_, last = trained("magnitude", np.ones((5, 8)), np.zeros((STEPS, 5, 8)))
    assert float(pruned_share(tree(last["kernel"]))) == pytest.approx(0.7)


def test_stacked_layers_are_pruned_one_by_one():
    kernel = np.stack([KERNEL, 100 * KERNEL])
    tx = pruning(optax.sgd(0.0), Sparsity(0.5, 0, 1), SCORES["magnitude"])
    params = {"stack": {"layers": {"in": {"kernel": jnp.array(kernel)}}}}
    updates, _ = tx.update(params, tx.init(params), params)
    found = optax.apply_updates(params, updates)["stack"]["layers"]["in"]["kernel"]
    np.testing.assert_array_equal((found == 0).sum((1, 2)), [20, 20])


def test_a_long_schedule_sorts_at_a_hundred_steps_and_ends_on_time():
    long = Sparsity(0.9, 100, 1000)
    due = np.flatnonzero(long.due(jnp.arange(1200)))
    assert len(due) == 101 and due[-1] == 1000
    assert float(long(jnp.array(1000))) == np.float32(0.9)


@pytest.mark.parametrize("between", [(0.9, 1.0), (0.1, 0.7), (0.0, 0.01)])
def test_every_run_however_short_ends_with_what_it_was_to_prune(between):
    config, (start, end) = default.get_config(), between
    config.regularization.update(sparsity=0.5, pruning_start=start, pruning_end=end)
    for steps in range(1, 8):
        schedule = resolve(override(config, {"steps": steps})).optimizer.sparsity
        assert schedule is not None
        assert any(schedule.due(t) and schedule(t) == 0.5 for t in np.arange(1, steps + 1))
