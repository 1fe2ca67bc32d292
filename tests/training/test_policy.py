"""The policy gradient is the gradient of the expected reward, and rewards are what they say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data import ByteTokenizer
from lm.model.transformer import Batch
from lm.training.loss import training_loss
from lm.training.policy import REWARDS, PolicyConfig, policy_gradient, reward_of_tokens
from lm.training.policy.rollout import Rollouts, roll_out
from tests.small_models import init, model_of

END, VOCAB, NEW = 2, 3, 3
PROMPT = [0, 1]
PRICE = 0.3


def outcomes():
    """Every continuation, which of its tokens are written, and its reward."""
    found = {}
    for tokens in itertools.product(range(VOCAB), repeat=NEW):
        ends = tokens.index(END) + 1 if END in tokens else NEW
        found[tokens[:ends]] = [*tokens[:ends], *[0] * (NEW - ends)], np.arange(NEW) < ends
    tokens, written = map(np.array, zip(*found.values(), strict=True))
    return np.concatenate([np.tile(PROMPT, (len(tokens), 1)), tokens], axis=1), written


def reward(tokens, written):
    """Depends on places as well as on tokens."""
    return jnp.sum(written * jnp.array([1.0, -0.5, 2.0]) * tokens[:, -NEW:], axis=1)


def rows(count):
    prompts = jnp.tile(jnp.array(PROMPT), (count, 1))
    ones = jnp.ones_like(prompts)
    return Batch(prompts, prompts, ones.astype(jnp.float32), ones, ones * jnp.arange(2))


def policy(samples):
    return PolicyConfig("brevity", len(PROMPT), NEW, samples, PRICE)


@pytest.fixture(params=["softmax", pytest.param("sigsoftmax", marks=pytest.mark.slow)])
def model_and_params(request):
    settings = {"model.num_layers": 1, "model.d_model": 8, "model.max_seq_len": 8}
    model = model_of(VOCAB, **settings, **{"output.head": request.param})
    return model, init(model, rows(1)), init(model, rows(1), seed=5)


def test_the_mean_estimate_is_the_enumerated_gradient(model_and_params):
    model, params, start = model_and_params
    tokens, written = outcomes()
    everything = Rollouts(jnp.array(tokens), jnp.array(written)).batch

    def log_probs(params):
        nats = model.apply({"params": params}, everything, method="negative_log_likelihood")
        return -jnp.sum(nats * everything.weights, axis=1)

    def objective(params):
        log_p, log_start = log_probs(params), log_probs(start)
        return jnp.sum(jnp.exp(log_p) * (reward(tokens, written) - PRICE * (log_p - log_start)))

    expected_value, expected = jax.jit(jax.value_and_grad(objective))(params)
    total = np.exp(np.asarray(log_probs(params), np.float64)).sum()
    assert abs(total - 1) < 1e-5  # the outcomes are all that there are

    loss = policy_gradient(policy(4), training_loss(model), model, reward, start, END)
    batch = rows(32)

    def estimate(key):
        def mean(params):
            return loss(params, batch, key).nats / jnp.sum(batch.weights)

        return jax.value_and_grad(mean)(params)

    keys = jax.random.split(jax.random.key(0), 250)
    values, gradients = jax.jit(lambda keys: jax.lax.map(estimate, keys))(keys)
    pairs = [(-values, expected_value)]
    pairs += [(-g, e) for g, e in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True)]
    for found, exact in pairs:
        found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
        error = found.std(axis=0, ddof=1) / np.sqrt(len(keys))
        assert np.all(np.abs(found.mean(axis=0) - exact) <= 4.5 * error + 1e-6)
    largest = max(float(jnp.abs(e).max()) for e in jax.tree.leaves(expected))
    errors = [np.std(g, axis=0).max() / np.sqrt(len(keys)) for g in jax.tree.leaves(gradients)]
    assert largest > 10 * max(errors)  # so that another gradient would be found out


def test_a_model_that_has_not_moved_has_no_divergence(model_and_params):
    model, params, _ = model_and_params
    loss = policy_gradient(policy(2), training_loss(model), model, reward, params, END)
    metrics = loss(params, rows(4), jax.random.key(0)).metrics
    assert abs(float(metrics["kl"])) < 1e-5


def test_a_continuation_ends_with_its_end_token(model_and_params):
    model, params, _ = model_and_params
    prompts = jnp.tile(jnp.array(PROMPT), (64, 1))
    found = roll_out(model, params, prompts, jax.random.key(1), NEW, END)
    for tokens, written in zip(np.asarray(found.tokens), np.asarray(found.written), strict=True):
        new = tokens[len(PROMPT) :].tolist()
        assert written.sum() == (new.index(END) + 1 if END in new else NEW)
        assert written[: written.sum()].all()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("x\nreturn a + b\nif x:\nelse:\nno code here\n", 3 / 4),
        ("x\n# words\n\n'words'\nword\ny = 1\n", 1 / 4),
        ("a = 1", 0.0),
        ("\n)(\n\0\n", 0.0),
    ],
)
def test_lines_of_python_are_statements(text, share):
    assert REWARDS["python_lines"]("", text, 1.0) == share


def test_a_reward_reads_what_is_written_and_not_what_follows_the_end():
    tokenizer, seen = ByteTokenizer(), []

    def spy(prompt, continuation, share):
        seen.append((prompt, continuation, share))
        return len(continuation)

    tokens = np.array([[*b"ab", *b"cdef"], [*b"xy", *b"z", tokenizer.end, *b"??"]], np.int32)
    written = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    found = jax.jit(reward_of_tokens(spy, tokenizer))(tokens, written)
    assert found.tolist() == [4, 1]
    assert seen == [("ab", "cdef", 1.0), ("xy", "z", 0.5)]
    assert REWARDS["brevity"]("", "z", 0.25) == 0.75
