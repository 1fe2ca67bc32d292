"""The synthetic language is what it says: its rank, its entropy, and its draws."""

import numpy as np
import pytest

from lm.data import DataConfig, eval_batches, prepare
from lm.data.synthetic import Language, language
from lm.errors import UserError

SMALL = {"tokenizer": "characters", "vocab_size": 60, "seq_len": 64, "validation_fraction": 0.2}


@pytest.mark.parametrize(("rank", "words"), [(3, 40), (8, 64), (20, 500)])
def test_the_matrix_of_log_probabilities_has_exactly_the_rank(rank, words):
    chain = Language(words=words, rank=rank)
    matrix = chain.log_probs[chain.state(np.arange(words))]
    np.testing.assert_allclose(np.exp(matrix).sum(axis=1), 1.0, rtol=1e-12)
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert singular[rank] < 1e-12 * singular[0]
    assert singular[rank - 1] > 1e-4 * singular[0]


def test_a_softmax_needs_one_feature_less_than_the_rank():
    chain = Language(words=100, rank=8)
    free = chain.log_probs - chain.log_probs[:, :1]  # a constant for each context is free
    singular = np.linalg.svd(free, compute_uv=False)
    assert singular[7] < 1e-12 * singular[0] < singular[6]


def test_the_entropy_is_that_of_the_whole_chain_of_words():
    chain = Language(words=30, rank=5, states=12)
    moves = np.exp(chain.log_probs[chain.state(np.arange(30))])
    often = np.linalg.matrix_power(moves, 200)[0]
    expected = -(often[:, None] * moves * np.log(moves)).sum()
    np.testing.assert_allclose(chain.entropy, expected, rtol=1e-12)


def test_drawn_text_follows_the_chain(tmp_path):
    corpus = prepare(DataConfig(source="synthetic:rank=6,tokens=400000", **SMALL), tmp_path)
    chain = corpus.language
    assert chain is not None and corpus.manifest["entropy"] == chain.entropy
    rows = next(eval_batches(corpus.rows("train"), batch_size=len(corpus.rows("train"))))
    inputs, targets = rows["tokens"][:, :-1], rows["tokens"][:, 1:]
    real = rows["segments"] > 0
    counts = np.zeros((chain.size, 60))
    np.add.at(counts, (chain.state(inputs[real]), targets[real]), 1)
    expected = counts.sum(axis=1, keepdims=True) * np.exp(chain.log_probs)
    enough = expected > 5
    # Squared deviations of counts over their expectations are about 1 on average: chi squared.
    deviation = np.mean((counts - expected)[enough] ** 2 / expected[enough])
    assert abs(deviation - 1.0) < 5 * np.sqrt(2 / enough.sum())
    nats = chain.nats(rows["tokens"])[real]
    assert abs(nats.mean() - chain.entropy) < 5 * nats.std() / np.sqrt(len(nats))


def test_the_same_name_is_the_same_text_and_another_seed_another(tmp_path):
    def hash_of(source, folder):
        return prepare(DataConfig(source=source, **SMALL), tmp_path / folder).manifest["hash"]

    source = "synthetic:rank=6,tokens=20000"
    assert hash_of(source, "a") == hash_of(source, "b")
    assert hash_of(f"{source},seed=1", "a") != hash_of(source, "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rank=80", "rank=80 must be from 3 to 59"),
        ("rank=8,states=4", "rank=8 must be from 3 to 4"),
        ("rank=many", "is no number"),
        ("rnk=8", "no option"),
        ("rank=8,words=60", "given twice"),
        ("seed=1", "lacks rank"),
    ],
)
def test_an_impossible_language_is_an_error(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(DataConfig(source=f"synthetic:{options}", **SMALL), tmp_path)


def test_a_synthetic_language_needs_its_own_tokenizer(tmp_path):
    with pytest.raises(UserError, match="use tokenizer characters, not bytes"):
        data = DataConfig(source="synthetic:rank=4", seq_len=8, validation_fraction=0.2)
        prepare(data, tmp_path)


def test_a_language_of_128k_words_is_made_without_a_square_matrix():
    chain = language("rank=6,states=16,words=131072,tokens=4096")
    assert chain.log_probs.shape == (16, 131072)
    assert max(int(words.max()) for words in chain.documents()) > 100_000
