"""Every output head is a distribution with the loss that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.output import OUTPUTS
from lm.output import head as head_module

N, D, V = 5, 8, 11
EVERY = pytest.mark.parametrize("name", OUTPUTS)


def inputs(dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, D)) * scale).astype(dtype), rng.integers(0, V, N)


def head_of(name, scale=0.5, **options):
    head = OUTPUTS[name](vocab_size=V, features=D, **options)
    hidden, targets = inputs()
    variables = head.init(jax.random.key(0), hidden, targets, method="loss")
    keys = iter(jax.random.split(jax.random.key(1), 100))
    variables = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) * scale, variables)
    return head, variables


@EVERY
def test_probabilities_sum_to_one(name):
    head, variables = head_of(name)
    log_probs = head.apply(variables, inputs()[0], method="log_probs")
    assert log_probs.shape == (N, V)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, atol=1e-6)


@EVERY
@pytest.mark.parametrize("scale", [0.5, 200.0])
def test_the_loss_is_minus_the_log_probability_of_the_target(name, scale):
    head, variables = head_of(name, scale)
    hidden, targets = inputs()
    log_probs = head.apply(variables, hidden, method="log_probs")
    expected = -np.asarray(log_probs)[np.arange(N), targets]
    for method in ("loss", "negative_log_likelihood"):
        loss = head.apply(variables, hidden, targets, method=method)
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_a_borrowed_table_replaces_the_own_one(name):
    head, variables = head_of(name)
    hidden, targets = inputs()
    tied = head.init(jax.random.key(0), hidden, targets, np.zeros((V, D)), method="loss")
    assert "table" not in tied.get("params", {})
    params = dict(variables["params"])
    table = params.pop("table")
    own = head.apply(variables, hidden, targets, method="loss")
    borrowed = head.apply({"params": params}, hidden, targets, table, method="loss")
    np.testing.assert_array_equal(own, borrowed)


def test_softmax_loss_and_gradient_equal_optax_in_float64():
    with jax.enable_x64(True):
        head, variables = head_of("softmax", param_dtype=jnp.float64)
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
    head = OUTPUTS["softmax"](vocab_size=2, features=1, dtype=jnp.bfloat16)
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


def test_a_mixture_passes_the_rank_of_its_features():
    rng = np.random.default_rng(0)
    words, features, contexts = 60, 4, 200
    hidden = rng.normal(size=(contexts, features)).astype(np.float32)

    def rank(name, **options):
        head = OUTPUTS[name](vocab_size=words, features=features, **options)
        variables = head.init(jax.random.key(0), hidden, np.zeros(contexts, int), method="loss")
        variables = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(np.float32) * 2.0, variables
        )
        log_probs = np.asarray(head.apply(variables, hidden, method="log_probs"), np.float64)
        values = np.linalg.svd(log_probs, compute_uv=False)
        return int((values > 1e-4 * values[0]).sum())

    assert rank("softmax") <= features + 1
    assert rank("mixture", mixtures=4) > 2 * features


@EVERY
@pytest.mark.parametrize("limit", [V, 2 * V, 3 * V])
def test_the_total_does_not_depend_on_chunks_in_value_or_gradient(name, limit, monkeypatch):
    options = {"z_loss": 1e-3, "label_smoothing": 0.1, "bias": True} if name == "softmax" else {}
    head, variables = head_of(name, **options)
    hidden = np.random.default_rng(1).normal(size=(6, D)).astype(np.float32)
    targets, weights = np.arange(6), np.array([1.0, 0.0, 0.5, 1.0, 2.0, 1.0], np.float32)
    table = np.random.default_rng(2).normal(size=(V, D)).astype(np.float32)

    def total(variables, hidden, table):
        return head.apply(variables, hidden, targets, weights, table, method="total")

    whole = jax.value_and_grad(total, argnums=(0, 1, 2))(variables, hidden, table)
    losses = head.apply(variables, hidden, targets, table, method="loss")
    np.testing.assert_allclose(whole[0], np.sum(losses * weights), rtol=1e-6)
    monkeypatch.setattr(head_module, "_logits_limit", lambda: limit)
    chunked = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(variables, hidden, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunked, whole)
    nats = head.apply(variables, hidden, targets, table, method="likelihoods")
    expected = head.apply(variables, hidden, targets, table, method="negative_log_likelihood")
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_chunks_keep_less_than_the_logits():
    head = OUTPUTS["softmax"](vocab_size=8192, features=16)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8192, 16), (8192, 16), (8192,))]
    targets = jax.ShapeDtypeStruct((8192,), jnp.int32)

    def total(table, hidden, weights, targets):
        return head.apply({}, hidden, targets, weights, table, method="total")

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8192 * 8192 * 4
