"""Heads and losses equal what others compute: optax, torch, entmax, scipy, brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.output import OUTPUTS
from lm.output.mixtape import tree_priors
from lm.output.plif import PiecewiseLinear
from tests.output.test_output import D, N, V, head_of, inputs


def test_softmax_loss_and_gradient_equal_optax_in_float64():
    with jax.enable_x64(True):
        head, variables = head_of("softmax", dtype=np.float64)
        hidden, targets = inputs(np.float64)
        table = jnp.asarray(variables["params"]["table"], jnp.float64)

        def ours(hidden, table):
            return head.apply({"params": {"table": table}}, hidden, targets, method="loss").sum()

        def optax_loss(hidden, table):
            logits = hidden @ table.T
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()

        np.testing.assert_allclose(ours(hidden, table), optax_loss(hidden, table), rtol=1e-13)
        for a, b in zip(
            jax.grad(ours, (0, 1))(hidden, table),
            jax.grad(optax_loss, (0, 1))(hidden, table),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-13)


def test_label_smoothing_equals_cross_entropy_with_smoothed_labels():
    head, variables = head_of("softmax", label_smoothing=0.1)
    hidden, targets = inputs()
    logits = hidden @ np.asarray(variables["params"]["table"]).T
    labels = 0.9 * np.eye(V)[targets] + 0.1 / V
    expected = optax.softmax_cross_entropy(logits, labels)
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_smoothing_and_z_loss_change_training_but_not_the_likelihood():
    plain, variables = head_of("softmax")
    hidden, targets = inputs()
    table = np.asarray(variables["params"]["table"])
    lse = jax.nn.logsumexp(hidden @ table.T, axis=-1)
    changed = OUTPUTS["softmax"](V, D, z_loss=0.01)
    expected = plain.apply(variables, hidden, targets, method="loss") + 0.01 * lse**2
    np.testing.assert_allclose(
        changed.apply(variables, hidden, targets, method="loss"), expected, rtol=1e-6
    )
    for head in (changed, OUTPUTS["softmax"](V, D, label_smoothing=0.2)):
        np.testing.assert_array_equal(
            head.apply(variables, hidden, targets, method="negative_log_likelihood"),
            plain.apply(variables, hidden, targets, method="negative_log_likelihood"),
        )


def test_coefficient_zero_is_bit_equal_to_off():
    plain, variables = head_of("softmax")
    off = OUTPUTS["softmax"](V, D, z_loss=0.0, label_smoothing=0.0, temperature=1.0)
    hidden, targets = inputs()

    def loss_and_gradient(head):
        def total(variables):
            return head.apply(variables, hidden, targets, method="loss").sum()

        return jax.value_and_grad(total)(variables)

    jax.tree.map(np.testing.assert_array_equal, loss_and_gradient(plain), loss_and_gradient(off))


def test_a_cap_bounds_the_logits():
    head, variables = head_of("softmax", cap=3.0, scale=100.0)
    log_probs = np.asarray(head.apply(variables, inputs()[0], method="log_probs"))
    assert (log_probs.max(-1) - log_probs.min(-1) <= 6.0 + 1e-5).all()


def test_the_true_class_keeps_its_gradient_as_p_tends_to_one_in_bfloat16():
    head = OUTPUTS["softmax"](vocab_size=2, d_model=1, dtype=jnp.bfloat16)
    hidden = jnp.ones((1, 1), jnp.bfloat16)

    def loss(table):
        return head.apply({"params": {"table": table}}, hidden, np.array([0]), method="loss")[0]

    table = jnp.array([[8.0], [0.0]])
    expected = -1.0 / (1.0 + np.exp(8.0))
    np.testing.assert_allclose(jax.grad(loss)(table)[0, 0], expected, rtol=0.01)


def test_a_mixture_of_one_is_the_softmax_on_tanh():
    head, variables = head_of("mixture", mixtures=1)
    hidden, targets = inputs()
    params = variables["params"]
    context = np.tanh(hidden @ params["latent"]["kernel"] + params["latent"]["bias"])
    softmax = OUTPUTS["softmax"](V, D)
    expected = softmax.apply(
        {"params": {"table": params["table"]}}, context, targets, method="loss"
    )
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_mixture_passes_the_rank_of_its_features():
    rng = np.random.default_rng(0)
    words, features, contexts = 60, 4, 200
    hidden = rng.normal(size=(contexts, features)).astype(np.float32)

    def rank(name, **options):
        head = OUTPUTS[name](vocab_size=words, d_model=features, **options)
        variables = head.init(jax.random.key(0), hidden, np.zeros(contexts, int), method="loss")
        variables = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(np.float32) * 2.0, variables
        )
        log_probs = np.asarray(head.apply(variables, hidden, method="log_probs"), np.float64)
        values = np.linalg.svd(log_probs, compute_uv=False)
        return int((values > 1e-4 * values[0]).sum())

    assert rank("softmax") <= features + 1
    assert rank("mixture", mixtures=4) > 2 * features


def test_focal_confidence_and_class_weights_equal_their_formulas():
    weights = tuple(np.linspace(0.2, 2.0, V).tolist())
    options = {"focal": 2.0, "confidence_penalty": 0.3, "class_weights": weights}
    head, variables = head_of("softmax", **options)
    hidden, targets = inputs()
    p = np.asarray(jax.nn.softmax(hidden @ variables["params"]["table"].T), np.float64)
    own, entropy = p[np.arange(N), targets], -(p * np.log(p)).sum(-1)
    expected = (-((1 - own) ** 2) * np.log(own) - 0.3 * entropy) * np.array(weights)[targets]
    actual = head.apply(variables, hidden, targets, method="loss")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("margin", [8.0, 30.0, 600.0])
def test_loss_and_gradient_keep_their_digits_as_p_tends_to_one(margin):
    head = OUTPUTS["softmax"](vocab_size=3, d_model=1)
    table = jnp.array([[margin], [0.0], [-margin]])

    def loss(table):
        return head.apply(
            {"params": {"table": table}}, jnp.ones((1, 1)), np.zeros(1, int), method="loss"
        )[0]

    value, gradient = jax.value_and_grad(loss)(table)
    others = np.exp(-float(margin)) + np.exp(-2.0 * margin)
    np.testing.assert_allclose(value, np.log1p(others), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient[0, 0], -others / (1 + others), rtol=1e-5, atol=1e-30)


def test_sigsoftmax_is_the_exponential_times_the_sigmoid():
    head, variables = head_of("sigsoftmax")
    z = np.asarray(inputs()[0] @ variables["params"]["table"].T, np.float64)
    expected = np.exp(z) / (1 + np.exp(-z))
    log_probs = head.apply(variables, inputs()[0], method="log_probs")
    np.testing.assert_allclose(
        np.exp(log_probs), expected / expected.sum(-1, keepdims=True), rtol=1e-5
    )


def test_plif_starts_as_the_softmax_and_keeps_the_likeliest_word():
    head, hidden = OUTPUTS["plif"](V, D), inputs()[0]
    fresh = head.init(jax.random.key(0), hidden, inputs()[1], method="loss")
    softmax = OUTPUTS["softmax"](V, D)
    plain = softmax.apply(
        {"params": {"table": fresh["params"]["table"]}}, hidden, method="log_probs"
    )
    np.testing.assert_allclose(head.apply(fresh, hidden, method="log_probs"), plain, atol=1e-6)
    slopes, edges = jnp.array([0.5, 2.0, 1.0, 0.1]), (-np.inf, -1.0, 0.0, 1.0, np.inf)
    z = jnp.linspace(-3.0, 3.0, 61)
    knots = [-2.0 - 0.5 * 2.0, -2.0, 0.0, 1.0, 1.0 + 0.1 * 2.0]
    expected = np.interp(z, [-3.0, -1.0, 0.0, 1.0, 3.0], knots)
    np.testing.assert_allclose(PiecewiseLinear(edges).value(z, slopes), expected, atol=1e-6)


def test_gaussian_is_a_softmax_over_squared_distances():
    head, variables = head_of("gaussian", sigma=0.7)
    hidden, table = inputs()[0], np.asarray(variables["params"]["table"])
    distances = ((hidden[:, None] - table[None]) ** 2).sum(-1)
    expected = jax.nn.log_softmax(-distances / (2 * 0.7**2))
    actual = head.apply(variables, hidden, method="log_probs")
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_mixtape_priors_are_a_tree_whose_leaves_sum_to_one():
    forks = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 3)
    leaves = tree_priors(forks)
    s = jax.nn.sigmoid(forks)
    np.testing.assert_allclose(leaves.sum(0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(leaves[0], (1 - s[0]) * (1 - s[1]), rtol=1e-5)
    np.testing.assert_allclose(leaves[3], s[0] * s[2], rtol=1e-5)


def test_mixed_contexts_stay_within_the_rank_of_their_features():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(60, 3)).astype(np.float32)

    def rank(name):
        head = OUTPUTS[name](vocab_size=40, d_model=3)
        shapes = jax.eval_shape(
            lambda: head.init(jax.random.key(0), hidden, np.zeros(60, int), method="loss")
        )
        variables = jax.tree.map(lambda x: rng.normal(size=x.shape) * 2.0, shapes)
        log_probs = jax.jit(lambda v: head.apply(v, hidden, method="log_probs"))(variables)
        values = np.linalg.svd(np.asarray(log_probs, np.float64), compute_uv=False)
        return int((values > 1e-4 * values[0]).sum())

    assert rank("mixture_of_contexts") <= 4
    assert rank("mixtape") > 8
