"""Measurements of a trained softmax agree with dense oracles, and with what is known."""

import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from scipy.optimize import linprog

from lm.checkpoints.restore import restore
from lm.config import override
from lm.evaluation import diagnostics as room
from lm.evaluation.calibration import calibration
from lm.evaluation.diagnostics import spectrum as spectrum_module
from lm.evaluation.diagnostics.argmax import LINEAR, direction, token_vectors
from lm.evaluation.diagnostics.gradient import surviving_shares
from lm.evaluation.diagnostics.spectrum import spectra, spectrum, token_blocks
from lm.experiment.train import train
from lm.output import OUTPUTS


def made(name, words=40, features=6, contexts=30):
    """A head's log-probabilities as a function, hidden states, targets and its parameters."""
    head = OUTPUTS[name](words, features, table_init=jax.nn.initializers.normal(1.0))
    chance = np.random.default_rng(0)
    hidden = chance.normal(size=(contexts, features)).astype(np.float32)
    targets = chance.integers(words, size=contexts)
    params = head.init(jax.random.key(0), hidden, targets, method="loss")
    return lambda h: head.apply(params, h, method="log_probs"), hidden, targets, params


@pytest.mark.parametrize("entries", [1, 100, 10**6])
def test_streamed_singular_values_are_those_of_the_whole_matrix(entries, monkeypatch):
    monkeypatch.setattr(spectrum_module, "_ENTRIES", entries)
    matrix = np.random.default_rng(0).normal(size=(7, 33)) - 4.0
    blocks = list(token_blocks(lambda rows: matrix[rows], np.arange(7), 33))
    np.testing.assert_array_equal(np.concatenate(blocks), matrix.T)
    assert max(block.size for block in blocks) <= max(entries, 7)
    whole, centred = spectra(blocks)
    rows = matrix - matrix.mean(axis=1, keepdims=True)
    for found, dense in ((whole, matrix), (centred, rows)):
        expected = np.linalg.svd(dense, compute_uv=False)
        np.testing.assert_allclose(found.singular, expected, rtol=1e-12)


def test_small_singular_values_keep_their_digits():
    chance = np.random.default_rng(0)
    left, right = (np.linalg.qr(chance.normal(size=(n, 6)))[0] for n in (20, 50))
    values = 10.0 ** -np.arange(0, 12, 2)
    blocks = np.array_split((left * values @ right.T).T, 5)
    np.testing.assert_allclose(spectra(blocks)[0].singular[:6], values, rtol=1e-4)


def test_entropy_rank_is_one_for_one_direction_and_n_for_n_equal_ones():
    assert spectrum(np.array([3.0, 0.0, 0.0])).entropy_rank == 1.0
    np.testing.assert_allclose(spectrum(np.full(5, 0.2)).entropy_rank, 5.0)
    shares = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(spectrum(4 * shares).entropy_rank, 2**1.5)
    assert spectrum(np.zeros(3))[1:] == (0, 0.0)


@pytest.mark.parametrize(
    ("name", "rank"), [("softmax", 7), ("mixture_of_contexts", 7), ("sigsoftmax", 30)]
)
def test_linear_logits_have_the_rank_of_the_features_and_one(name, rank):
    log_probs, hidden, _, _ = made(name)
    whole, centred = spectra(token_blocks(log_probs, hidden, 40))
    assert whole.rank == rank
    assert centred.rank == (6 if rank == 7 else 30)


@pytest.mark.parametrize(
    "name", ["softmax", "sigsoftmax", pytest.param("mixture", marks=pytest.mark.slow)]
)
def test_the_surviving_gradient_is_its_projection_onto_the_dense_jacobian(name):
    log_probs, hidden, targets, _ = made(name)
    shares = surviving_shares(lambda _, h: log_probs(h[None])[0], None, hidden[:4], targets[:4])
    for state, target, share in zip(hidden, targets, shares, strict=False):
        jacobian = np.asarray(jax.jacrev(lambda h: log_probs(h[None])[0])(jnp.asarray(state)), "f8")
        gradient = np.exp(np.asarray(log_probs(state[None])[0], np.float64)) - np.eye(40)[target]
        span = jacobian - jacobian.mean(axis=0)
        passed = span @ np.linalg.lstsq(span, gradient, rcond=1e-6)[0]
        expected = np.linalg.norm(passed) / np.linalg.norm(gradient)
        np.testing.assert_allclose(share, expected, rtol=1e-4)


def test_everything_survives_a_head_as_wide_as_the_vocabulary():
    log_probs, hidden, targets, _ = made("softmax", words=8, features=10)
    shares = surviving_shares(lambda _, h: log_probs(h[None])[0], None, hidden[:3], targets[:3])
    np.testing.assert_allclose(shares, 1.0, rtol=1e-5)


def with_bias(table, bias=None):
    bias = np.zeros(len(table)) if bias is None else bias
    return np.concatenate([table, bias[:, None]], axis=1)


def test_a_word_inside_the_hull_of_others_is_never_the_argmax():
    chance = np.random.default_rng(0)
    corners = chance.normal(size=(30, 3))
    inside = chance.dirichlet(np.ones(30), size=5) @ corners
    words = with_bias(np.concatenate([corners, inside]))
    assert all(direction(words, word) is None for word in range(30, 35))
    on_sphere = with_bias(corners / np.linalg.norm(corners, axis=1, keepdims=True))
    assert all(direction(on_sphere, word) is not None for word in range(30))


@pytest.mark.parametrize("features", [1, 2, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_the_argmax_test_agrees_with_one_program_over_all_words(features, biased):
    chance = np.random.default_rng(features)
    words = with_bias(chance.normal(size=(60, features)), chance.normal(size=60) * biased)
    seen = set()
    for word in range(60):
        x = direction(words, word)
        ahead = np.delete(words[word] - words, word, axis=0)
        # Free hidden states h with (w - w_j) . h + b - b_j >= e, e at most 1.
        solved = linprog(
            np.append(np.zeros(features), -1.0),
            np.concatenate([-ahead[:, :-1], np.ones((59, 1))], axis=1),
            ahead[:, -1],
            bounds=[(None, None)] * features + [(None, 1.0)],
        )
        assert (x is not None) == (solved.x[-1] > 1e-6)
        if x is not None:
            assert np.argmax(words @ x) == word and x[-1] >= 0
        seen.add(x is None)
    assert seen == {True, False}


def test_linear_words_are_those_of_the_head():
    params = {"embedding": np.ones((4, 2)), "head": {"table": np.eye(4, 2), "bias": np.arange(4.0)}}
    tied, own = (token_vectors("softmax", params, tied) for tied in (True, False))
    assert tied is not None and own is not None
    np.testing.assert_array_equal(tied, [[1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]])
    np.testing.assert_array_equal(own, [[1, 0, 0], [0, 1, 1], [0, 0, 2], [0, 0, 3]])
    assert token_vectors("mixture", params, True) is None
    assert set(LINEAR) < set(OUTPUTS)


@pytest.mark.parametrize("name", ["sigsoftmax", "gaussian", "sigmoid"])
def test_only_words_that_can_be_the_argmax_are_ever_the_likeliest(name):
    log_probs, hidden, _, params = made(name, features=3, contexts=3000)
    words = token_vectors(name, {"head": params["params"]}, tied=False)
    assert words is not None
    for word in set(np.argmax(np.asarray(log_probs(4 * hidden)), axis=1).tolist()):
        assert direction(words, word) is not None


def test_calibration_counts_what_falls_into_each_bin():
    found = calibration(np.array([0.1, 0.45, 0.5, 1.0, 0.9]), np.array([0, 1, 0, 1, 1]), bins=2)
    assert found.counts.tolist() == [3, 2]
    np.testing.assert_allclose(found.confidence, [0.35, 0.95])
    np.testing.assert_allclose(found.accuracy, [1 / 3, 1.0])
    np.testing.assert_allclose(found.error, 3 / 5 * (0.35 - 1 / 3) + 2 / 5 * 0.05)


def test_the_error_of_a_calibrated_model_is_what_chance_says():
    chance = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        confidence = chance.beta(2, 3, size=500)
        found = calibration(confidence, chance.random(500) < confidence)
        errors.append((found.error, found.chance))
    of_draws, said = np.mean(errors, axis=0)
    np.testing.assert_allclose(said, of_draws, rtol=0.05)


def test_a_diagnosed_run_finds_the_ranks_of_its_head_and_of_its_language(small_config, tmp_path):
    settings = {"data.source": "synthetic:rank=12,tokens=40000", "data.tokenizer": "characters"}
    settings |= {
        "data.vocab_size": 64,
        "model.d_model": 8,
        "model.num_layers": 1,
        "model.norm": "rmsnorm",
    }
    settings |= {
        "steps": 2,
        "schedule.warmup_steps": 1,
        "evaluation.every": 0,
        "checkpoint.every": 0,
    }
    result = train(override(small_config, settings), tmp_path)
    # Two steps learn nothing; the gap is then that of a flat prediction.
    entropy = json.loads((tmp_path / "data.json").read_text())["entropy"]
    assert abs(result["eval/excess_nats"] - (np.log(64) - entropy)) < 0.3
    run = restore(tmp_path)
    with jax.set_mesh(run.program.mesh):
        found = room.diagnose(run, 100)
    assert found["spectrum"]["rank"] == 9 and found["spectrum_centred"]["rank"] == 8
    assert found["spectrum_truth"]["rank"] == 12
    assert 0 < found["gradient"]["share"] < 1
    assert found["argmax"]["tokens"] == 64
    assert sum(each["count"] for each in found["calibration"]["bins"]) == 16 * 32
    room.write(found, "a run", tmp_path)
    assert json.loads((tmp_path / "diagnose.json").read_text())["contexts"] == 100
    assert np.ptp(matplotlib.image.imread(tmp_path / "diagnose.png")) > 0.9
    assert any("entropy rank" in line for line in room.lines(found))
