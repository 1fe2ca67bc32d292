"""Every output head is a distribution with the loss that it says, however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.output import OUTPUTS

N, D, V = 6, 8, 11
EVERY = pytest.mark.parametrize("name", OUTPUTS)
# Heads whose training loss is not minus the log-likelihood.
OTHER_LOSS = {
    *("sampled", "nce", "dynamic", "gumbel", "sparsemax", "entmax", "sigmoid", "squared"),
    *("von_mises_fisher", "crf"),
}
OPTIONS = {
    "softmax": {
        "bias": True,
        "cap": 900.0,
        "z_loss": 1e-3,
        "label_smoothing": 0.1,
        "focal": 1.5,
        "confidence_penalty": 0.1,
        "class_weights": tuple(np.linspace(0.5, 1.5, V).tolist()),
    },
    "sampled": {"samples": 4},
    "nce": {"samples": 4, "bias": True},
    "dynamic": {"samples": 4},
    "adaptive": {"counts": np.arange(V) % 4},
    "hierarchical": {"counts": np.arange(V) % 4},
    "class_factored": {"counts": np.arange(V) % 4},
    "squared": {"bias": True, "emphasis": 2.0},
}
RNGS = {"softmax": jax.random.key(3)}


def inputs(dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, D)) * scale).astype(dtype), rng.integers(0, V, N)


def head_of(name, scale=0.5, dtype=np.float32, **options):
    """A head and random parameters of it."""
    head = OUTPUTS[name](vocab_size=V, d_model=D, param_dtype=dtype, **options)
    hidden, targets = inputs(dtype)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), hidden, targets, method="loss"))
    rng = np.random.default_rng(1)
    return head, jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * scale, dtype), shapes
    )


def total_of(head, targets, table=None):
    """The total as a function of parameters and hidden states, unevenly weighted."""
    weights = np.array([1.0, 0.0, 0.5, 1.0, 2.0, 1.0], np.float32)

    def total(variables, hidden):
        arguments = (hidden, targets, weights, table)
        return head.apply(variables, *arguments, method="loss_sum", rngs=RNGS)

    return total


@functools.cache
def everything_of(name, with_options):
    """What a head's methods give, and the total's gradients, as one compiled function."""
    head, _ = head_of(name, **(OPTIONS[name] if with_options else {}))
    _, targets = inputs()

    # Logits of some thousands lose digits where LLVM does not round two products of them alike.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def everything(variables, hidden):
        found = {
            method: head.apply(variables, hidden, targets, method=method)
            for method in ("loss", "negative_log_likelihood")
        }
        nats = ("negative_log_likelihood", hidden, targets)
        found["in parts"] = head.apply(variables, *nats, method="per_token")
        found["log_probs"] = head.apply(variables, hidden, method="log_probs")
        total = jax.value_and_grad(total_of(head, targets), argnums=(0, 1))
        found["total"], found["gradients"] = total(variables, hidden)
        return found

    return everything


@functools.cache
def computed(name, scale=0.5, with_options=False):
    """What that function finds for random parameters; a head that has no options needs none."""
    with_options = with_options and name in OPTIONS
    _, variables = head_of(name, scale, **(OPTIONS[name] if with_options else {}))
    everything = everything_of(name, with_options)
    return jax.tree.map(np.asarray, everything(variables, inputs()[0]))


@EVERY
@pytest.mark.parametrize("scale", [0.5, 200.0])
def test_probabilities_sum_to_one(name, scale):
    log_probs = computed(name, scale)["log_probs"]
    assert log_probs.shape == (N, V)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, atol=2e-6)


@EVERY
@pytest.mark.parametrize("scale", [0.5, 200.0])
def test_the_likelihood_is_minus_the_log_probability_of_the_target(name, scale):
    found, targets = computed(name, scale), inputs()[1]
    nats = found["negative_log_likelihood"]
    assert np.isfinite(nats).all()
    assert np.isfinite(found["loss"]).all()
    np.testing.assert_allclose(found["in parts"], nats, rtol=1e-6)
    own = found["log_probs"][np.arange(N), targets]
    if not OUTPUTS[name].full_support:
        epsilon = 0.01 / V
        own = np.log((np.exp(own) + epsilon) / (1 + 0.01))
    if name != "crf":  # whose likelihoods are conditional, and whose log_probs are marginal
        np.testing.assert_allclose(nats, -own, rtol=1e-5, atol=1e-4)
    if name not in OTHER_LOSS:
        np.testing.assert_array_equal(found["loss"], nats)


@EVERY
def test_large_logits_keep_gradients_finite(name):
    for leaf in jax.tree.leaves(computed(name, 200.0)["gradients"]):
        assert np.isfinite(leaf).all()


@EVERY
@pytest.mark.parametrize("token_chunk_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_total_does_not_depend_on_chunks_in_value_or_gradient(name, token_chunk_size):
    whole = computed(name, with_options=True)
    head, variables = head_of(name, **OPTIONS.get(name, {}), token_chunk_size=token_chunk_size)
    hidden, targets = inputs()
    total = jax.value_and_grad(total_of(head, targets), argnums=(0, 1))
    value, gradients = jax.jit(total)(variables, hidden)
    np.testing.assert_allclose(value, whole["total"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients, whole["gradients"]
    )
    if token_chunk_size == 4:
        arguments = ("negative_log_likelihood", hidden, targets)
        nats = jax.jit(lambda: head.apply(variables, *arguments, method="per_token"))()
        np.testing.assert_allclose(nats, whole["in parts"], rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "mixture", "sampled", "adaptive"])
def test_leaving_out_tokens_of_weight_zero_changes_nothing(name):
    whole = computed(name, with_options=True)
    head, variables = head_of(
        name, **OPTIONS.get(name, {}), target_fraction=0.5, token_chunk_size=2
    )
    hidden, targets = inputs()
    total = jax.value_and_grad(total_of(head, targets), argnums=(0, 1))
    value, gradients = jax.jit(total)(variables, hidden)
    np.testing.assert_allclose(value, whole["total"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients, whole["gradients"]
    )


@EVERY
def test_gradients_equal_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        head, variables = head_of(name, dtype=np.float64, **OPTIONS.get(name, {}))
        hidden, targets = inputs(np.float64)
        if name == "von_mises_fisher":  # its table is not trained
            variables = {"params": {"table": jnp.asarray(variables["params"]["table"])}}
        point = (variables, hidden)
        rng = np.random.default_rng(4)
        way = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
        if name == "von_mises_fisher":
            way[0]["params"]["table"] *= 0.0
        total = total_of(head, targets)

        @jax.jit
        def both(point, way):
            slope = jax.grad(lambda point: total(*point))(point)
            slope = sum(
                jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slope, way)), strict=True)
            )

            def at(t):
                return total(*jax.tree.map(lambda x, d: x + t * d, point, way))

            return slope, (at(1e-5) - at(-1e-5)) / 2e-5

        slope, difference = both(point, way)
        np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-6)


@EVERY
def test_bfloat16_hidden_states_get_gradients_as_good_as_their_digits(name):
    head, variables = head_of(name, dtype=np.float32)
    hidden, targets = inputs()
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), variables)

    @jax.jit
    def both():
        total = jax.grad(total_of(head, targets), argnums=(0, 1))
        return total(narrow, hidden), total(narrow, hidden.astype(jnp.float32))

    ours, exact = both()
    assert ours[1].dtype == jnp.bfloat16
    for a, b in zip(*map(jax.tree.leaves, (ours, exact)), strict=True):
        a = np.asarray(a, np.float32)
        assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(b) + 1e-6


@pytest.mark.parametrize("name", [name for name in OUTPUTS if OUTPUTS[name].tieable])
def test_a_borrowed_table_replaces_the_own_one(name):
    head, variables = head_of(name, **OPTIONS.get(name, {}))
    hidden, targets = inputs()
    borrowed = jnp.zeros((V, D))
    tied = jax.eval_shape(
        lambda: head.init(jax.random.key(0), hidden, targets, borrowed, method="loss")
    )
    assert "table" not in tied.get("params", {})
    params = dict(variables["params"])
    table = params.pop("table")

    @jax.jit
    def both():
        own = jax.value_and_grad(total_of(head, targets), argnums=1)(variables, hidden)
        other = total_of(head, targets, table)
        return own, jax.value_and_grad(other, argnums=1)({"params": params}, hidden)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *both())


@pytest.mark.parametrize("name", ["softmax", "adaptive", "hierarchical", "class_factored"])
def test_samples_have_the_frequencies_of_the_distribution(name):
    draws = 4000
    head, variables = head_of(name, **({} if name == "softmax" else OPTIONS[name]))
    hidden = np.repeat(inputs()[0][:1], draws, axis=0)

    @jax.jit
    def drawn():
        log_probs = head.apply(variables, hidden[:1], method="log_probs")[0]
        return log_probs, head.apply(variables, hidden, jax.random.key(0), method="sample")

    log_probs, words = drawn()
    p = np.exp(log_probs)
    frequencies = np.bincount(words, minlength=V) / draws
    # Four standard errors for each of the words.
    assert (np.abs(frequencies - p) <= 4 * np.sqrt(p * (1 - p) / draws) + 1e-4).all()


def test_chunks_keep_the_logits_of_one_of_them_and_their_gradient():
    head = OUTPUTS["softmax"](vocab_size=8192, d_model=16)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8192, 16), (8192, 16), (8192,))]
    targets = jax.ShapeDtypeStruct((8192,), jnp.int32)

    def total(table, hidden, weights, targets):
        return head.apply({}, hidden, targets, weights, table, method="loss_sum")

    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*shapes, targets).compile()
    chunks = head.chunks(8192, head.training_logits)
    assert chunks == 4
    # Of one chunk, its logits and their gradient.
    assert compiled.memory_analysis().temp_size_in_bytes < 2.05 * 8192 * 8192 * 4 / chunks


@pytest.mark.parametrize("method", ["loss_sum", "per_token"])
def test_a_masked_objective_pays_for_the_tokens_that_count(method):
    tokens, features, words = 2048, 64, 512
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(tokens, features)).astype(np.float32)
    table = rng.normal(size=(words, features)).astype(np.float32)
    targets = rng.integers(0, words, tokens)

    def of_head(**options):
        head = OUTPUTS["softmax"](words, features, **options)

        def total(table, hidden, weights):
            return head.apply({}, hidden, targets, weights, table, method="loss_sum")

        def nats(table, hidden, weights):
            arguments = ("negative_log_likelihood", hidden, targets, table, weights > 0)
            return weights * head.apply({}, *arguments, method="per_token")

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1)) if method == "loss_sum" else nats)

    few = (rng.random(tokens) < 0.15).astype(np.float32)
    whole, left_out = (
        function.lower(table, hidden, few).compile()
        for function in (of_head(), of_head(target_fraction=0.15))
    )
    # Not 0.15: the number of tokens that count varies, and blocks have room for more.
    assert left_out.cost_analysis()["flops"] < 0.19 * whole.cost_analysis()["flops"]
    # More than one block of them, should more tokens count than the objective said, loses none.
    for weights in (few, np.ones_like(few), np.zeros_like(few)):
        for a, b in zip(
            jax.tree.leaves(left_out(table, hidden, weights)),
            jax.tree.leaves(whole(table, hidden, weights)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
