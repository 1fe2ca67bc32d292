"""The head's TPU kernels, interpreted on this machine, are the plain path: statistics of logits,
and the gradients of hidden states, table and bias; and where they are chosen.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.devices.sharding import described_mesh, make_mesh
from lm.output import OUTPUTS, base, pointwise
from lm.output.kernels import Choice, fused_logit_stats
from lm.output.kernels.tiles import Tiles, make_tiles
from lm.output.logit_stats import LogitStats, logit_stats
from lm.output.logit_transform import Capped, LogitTransform, LogSigmoidAdded, Scaled
from lm.output.sharded import output_shards

N, D, V = 200, 24, 300  # two blocks of tokens and three of the vocabulary, the last ones in part
TRANSFORMS = {
    "softmax": LogitTransform(),
    "temperature": Scaled(2.0),
    "cap": Capped(9.0, 1.5),
    "sigsoftmax": LogSigmoidAdded(),
}
PLAIN = LogitTransform()
in_small_tiles = functools.partial(fused_logit_stats, interpret=True)


def problem(scale=1.0, bias=True, vocab=V):
    """Hidden states, table and bias; targets; and the gradients of the statistics."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((N, D), (vocab, D), (vocab,))]
    arrays[0] *= scale
    grads = LogitStats(*rng.normal(size=(4, N)) * (rng.random(N) < 0.9))  # some do not count
    return arrays if bias else arrays[:2], rng.integers(0, vocab, N), grads


def results(stats, arrays, grads, dtype):
    """Statistics and gradients, in float64."""
    arrays, grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), (arrays, grads))
    found, gradient = jax.vjp(stats, *arrays)
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, found)
    found = (found, gradient(grads))
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(found)]


def by_kernels(
    targets, transform=PLAIN, mean=False, entropy=False, dtype=jnp.float32, vocab=V, cores=1
):
    def stats(hidden, table, bias=None):
        tiles = Tiles(N, vocab, 128, 128, cores)
        given = (jnp.asarray(targets), dtype, mean, entropy, None, transform, tiles)
        return fused_logit_stats(hidden, table, bias, *given, interpret=True)

    return stats


def by_plain_path(targets, transform=PLAIN, mean=False, entropy=False):
    def stats(hidden, table, bias=0.0):
        z = hidden @ table.T + bias
        return logit_stats(z, jnp.asarray(targets), mean, entropy, None, transform)

    return stats


def check(scale=1.0, transform=PLAIN, mean=False, entropy=False, bias=True, vocab=V):
    arrays, targets, grads = problem(scale, bias, vocab)
    found = results(
        by_kernels(targets, transform, mean, entropy, vocab=vocab), arrays, grads, np.float32
    )
    with jax.enable_x64(True):
        exact = by_plain_path(targets, transform, mean, entropy)
        expected = results(exact, arrays, grads, np.float64)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_statistics_and_gradients_are_those_in_float64():
    check(transform=TRANSFORMS["cap"], mean=True)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [V, 384])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_has_the_statistics_and_gradients_of_float64(transform, mean, bias, vocab):
    check(transform=TRANSFORMS[transform], mean=mean, entropy=mean, bias=bias, vocab=vocab)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [450, 512])
def test_a_vocabulary_over_two_cores_has_the_gradients_of_one(vocab):
    arrays, targets, grads = problem(vocab=vocab)
    one, two = (
        results(by_kernels(targets, vocab=vocab, cores=cores), arrays, grads, np.float32)
        for cores in (1, 2)
    )
    for x, y in zip(one, two, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * np.abs(x).max())


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["softmax", "cap", "sigsoftmax"])
def test_logits_of_hundreds_lose_no_more_digits_than_their_float32_product(transform):
    # Of the largest logits of 600 float32 has five digits behind the point.
    check(scale=30.0, transform=TRANSFORMS[transform])


@pytest.mark.slow
def test_what_fills_up_a_tile_does_not_overflow_where_all_logits_are_far_below_zero():
    arrays, targets, grads = problem()
    arrays[2] = np.full(V, -128.0)  # e^128 is above all float32
    found = results(by_kernels(targets), arrays, grads, np.float32)
    expected = results(by_kernels(targets), arrays[:2], grads, np.float32)
    for one, other in zip(found[4:6], expected[4:6], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())


@pytest.mark.slow
def test_a_target_that_is_nearly_certain_has_an_exact_loss_and_gradient():
    """As p approaches 1, the loss is the sum of the others' odds; nothing is cancelled."""
    table = np.zeros((V, D), np.float32)
    table[7, 0] = 1.0
    margins = np.linspace(0.0, 60.0, N).astype(np.float32)
    hidden = np.zeros((N, D), np.float32)
    hidden[:, 0] = margins
    targets = np.full(N, 7)
    grads = LogitStats(np.ones(N), *np.zeros((3, N)))
    nats, *_, hidden_grad, _ = results(by_kernels(targets), [hidden, table], grads, np.float32)
    odds = (V - 1) * np.exp(-margins.astype(np.float64))
    np.testing.assert_allclose(nats, np.log1p(odds), rtol=2e-6)
    np.testing.assert_allclose(hidden_grad[:, 0], -odds / (1.0 + odds), rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["softmax", "cap", "sigsoftmax"])
def test_bfloat16_differs_from_float64_by_its_rounding(transform):
    arrays, targets, grads = problem()
    arrays = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in arrays]
    given = (targets, TRANSFORMS[transform])
    found = results(by_kernels(*given, dtype=jnp.bfloat16), arrays, grads, np.float32)
    with jax.enable_x64(True):
        expected = results(by_plain_path(*given), arrays, grads, np.float64)
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        # Products of bfloat16 are exact in float32; gradients of logits are rounded once.
        error = np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30)
        assert error < (1e-5 if place < 4 else 2**-8)


OPTIONS = {
    "softmax": {"bias": True, "cap": 9.0, "z_loss": 1e-2, "label_smoothing": 0.1, "focal": 1.5},
    "sigsoftmax": {"confidence_penalty": 0.1},
    "mixture_of_contexts": {"mixtures": 2},
}


def totals(head, variables, hidden, targets, weights, fused):
    """The loss and its gradients, by kernels or not."""

    def total(variables, hidden):
        return head.apply(variables, hidden, targets, weights, method="loss_sum")

    with (
        mock.patch.object(base, "choose", lambda *_: Choice(fused)),
        mock.patch.object(pointwise, "fused_logit_stats", in_small_tiles),
    ):
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(variables, hidden)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, (2, 2, 1, 2), (1, 1, 1, 8), (8, 1, 1, 1)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("target_fraction", [1.0, 0.3])
def test_heads_train_alike_by_kernels_on_every_mesh(name, mesh, target_fraction):
    tokens, vocab = 64, 4096
    rng = np.random.default_rng(0)
    head = OUTPUTS[name](vocab, D, target_fraction=target_fraction, **OPTIONS[name])
    hidden = jnp.asarray(rng.normal(size=(tokens, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab, tokens))
    weights = jnp.asarray(rng.random(tokens) * (rng.random(tokens) < target_fraction), jnp.float32)
    variables = head.init(jax.random.key(0), hidden, targets, method="loss")
    variables = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), variables)
    arguments = (variables, hidden, targets, weights)
    expected = totals(head, *arguments, fused=False)
    shards = None if mesh is None else output_shards(make_mesh(*mesh))
    found = totals(head.clone(shards=shards), *arguments, fused=True)

    def close(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())

    jax.tree.map(close, found, expected)


def chosen(kind="TPU v6 lite", name="softmax", tokens=8192, vocab=32768, features=768, **options):
    head = OUTPUTS[name](vocab, features, **{"dtype": jnp.bfloat16, **options})
    with jax.sharding.use_abstract_mesh(described_mesh(kind, "tpu")):
        return head.choose(tokens), head.describe(tokens)


def test_kernels_are_chosen_by_the_roofline_and_else_the_reason_is_told():
    assert chosen() == (Choice(True), "8192 tokens by TPU kernels")
    assert (
        chosen(target_fraction=0.15)[1] == "1359 of 8192 tokens gathered at a time by TPU kernels"
    )
    for kind, features in (("TPU v5 lite", 721), ("TPU v5", 497), ("TPU v6 lite", 840)):
        assert chosen(kind, features=features)[0].fused
        assert "it takes at least" in chosen(kind, features=features + 128)[0].reason
    assert chosen(token_chunk_size=0) == (Choice(False), "8192 tokens at once")
    assert OUTPUTS["softmax"](32768, 768).choose(8192) == Choice(False)
    reasons = {
        "PlifHead has none": chosen(name="plif"),
        "a vocabulary of 256 on a device is below 4,096": chosen(vocab=256),
        "float16 is neither bfloat16 nor float32": chosen(dtype=jnp.float16),
        "the peak rates of TPU v9 are not known": chosen("TPU v9"),
    }
    for reason, (choice, line) in reasons.items():
        assert choice == Choice(False, reason)
        assert line == f"8192 tokens at once (no kernel: {reason})"


def test_tiles_fit_in_a_cores_memory_and_divide_the_vocabulary_where_they_can():
    with jax.sharding.use_abstract_mesh(described_mesh("TPU v5 lite", "tpu")):
        assert make_tiles(8192, 32768, 768, 2) == Tiles(8192, 32768, 1024, 512)
        assert make_tiles(100, 128_256, 768, 2) == Tiles(100, 128_256, 128, 384)
        assert make_tiles(8192, 50_257, 768, 2).vocab_tile == 512
        assert make_tiles(8192, 32768, 4096, 2) == Tiles(8192, 32768, 512, 256)
    with jax.sharding.use_abstract_mesh(described_mesh("TPU v4", "tpu")):
        assert make_tiles(8192, 32768, 768, 2) == Tiles(8192, 32768, 1024, 128, cores=2)
        assert make_tiles(8192, 50_304, 512, 2).vocab_blocks == 198  # 99 of 256 on each core
