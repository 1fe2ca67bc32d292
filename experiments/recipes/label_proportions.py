"""Label proportions of simulated documents by softmax and sparsemax regression (1602.02068).

A document has topics, and words from the mixture of its topics' distributions; the proportions of
its topics are to be told from its words.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.scipy.special import xlogy
from scipy.optimize import minimize

from lm.softmax import WEIGHTINGS

SEEDS = (0, 1, 2, 3, 4)
LABELS = 10  # and words of the vocabulary
TRAIN, CHOICE, TEST = 1200, 200, 1000  # documents; the middle ones choose the penalty
MEAN_LABELS = 1.0
LENGTHS = (200, 2000)  # mean words of a document
PENALTIES = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)


class Documents(NamedTuple):
    """Shares of words [N, V], and of labels [N, K]."""

    words: np.ndarray
    labels: np.ndarray


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Ratios of sparsemax's errors to softmax's on the test documents of the greater length, and
    the first of them over that of the lesser length.
    """
    found = {}
    for mixture in ("uniform", "random"):
        short, long = (ratios(seed, length, mixture == "uniform") for length in LENGTHS)
        found[f"squared_error_{mixture}"], found[f"jensen_shannon_{mixture}"] = long
        found[f"growth_{mixture}"] = long[0] / short[0]
    return found


def ratios(seed: int, length: int, uniform: bool) -> tuple[float, float]:
    """Squared error and Jensen-Shannon divergence of sparsemax over those of softmax."""
    drawn = documents(np.random.default_rng([seed, length, uniform]), length, uniform)
    sparsemax, softmax = (regression_errors(name, drawn) for name in ("sparsemax", "softmax"))
    return sparsemax[0] / softmax[0], sparsemax[1] / softmax[1]


def documents(rng: np.random.Generator, length: int, uniform: bool) -> Documents:
    """Draws documents: how many labels, which, in which proportions, how many words, which."""
    often = rng.uniform(size=LABELS)
    often /= often.sum()
    vocabulary = rng.uniform(size=(LABELS, LABELS))  # [label, word]
    vocabulary /= vocabulary.sum(axis=1, keepdims=True)
    words, labels = [], []
    for _ in range(TRAIN + CHOICE + TEST):
        number = 0
        while not 1 <= number <= LABELS:
            number = rng.poisson(MEAN_LABELS)
        chosen = rng.choice(LABELS, number, replace=False, p=often)
        share = np.zeros(LABELS)
        share[chosen] = 1 / number if uniform else rng.dirichlet(np.ones(number))
        counts = rng.multinomial(max(1, rng.poisson(length)), share @ vocabulary)
        words.append(counts / counts.sum())
        labels.append(share)
    return Documents(np.array(words), np.array(labels))


def regression_errors(weighting: str, drawn: Documents) -> tuple[float, float]:
    """Mean squared error and Jensen-Shannon divergence on the test documents, with the penalty that
    has the least squared error on those that choose it.
    """
    parts = [slice(0, TRAIN), slice(TRAIN, TRAIN + CHOICE), slice(TRAIN + CHOICE, None)]
    train, choice, test = (Documents(*(each[part] for each in drawn)) for part in parts)
    fits = fitted(weighting, train)
    best = min(fits, key=lambda fit: squared_error(predict(weighting, fit, choice), choice.labels))
    p = predict(weighting, best, test)
    return squared_error(p, test.labels), jensen_shannon(p, test.labels)


def fitted(weighting: str, train: Documents) -> list[np.ndarray]:
    """Weights and bias [V + 1, K] that minimise the loss with each penalty, by L-BFGS.

    Each fit starts from the one before, of a larger penalty.
    """
    words, labels = with_bias(train.words), jnp.asarray(train.labels, jnp.float32)
    flat, found = np.zeros((LABELS + 1) * LABELS), []
    for penalty in reversed(PENALTIES):

        def value_and_slope(point, penalty=penalty):
            table = jnp.asarray(point.reshape(-1, LABELS), jnp.float32)
            value, slope = loss_and_slope(weighting, table, words, labels, penalty)
            return float(value), np.asarray(slope, np.float64).ravel()

        options = {"maxiter": 200}
        flat = minimize(value_and_slope, flat, jac=True, method="L-BFGS-B", options=options).x
        found.append(flat.reshape(-1, LABELS))
    return found


@functools.partial(jax.jit, static_argnums=0)
def loss_and_slope(
    weighting: str, table: jax.Array, words: jax.Array, labels: jax.Array, penalty: float
) -> tuple[jax.Array, jax.Array]:
    """The mean Fenchel-Young loss with half of the penalty times the squared weights, and its
    gradient in the table.

    Loss of scores z and proportions q: z . (p - q) - Omega(p), p = weighting(z), whose gradient in
    z is p - q; Omega(p) is (|p|^2 - 1) / 2 of sparsemax and sum p log p of softmax.
    """

    def loss(table):
        z = words @ table
        p = jax.lax.stop_gradient(WEIGHTINGS[weighting].apply(z))
        squares, entropy = jnp.sum(p**2, axis=1), jnp.sum(xlogy(p, p), axis=1)
        omega = (squares - 1) / 2 if weighting == "sparsemax" else entropy
        losses = jnp.sum(z * (p - labels), axis=1) - omega
        return jnp.mean(losses) + penalty / 2 * jnp.sum(table[:-1] ** 2)

    return jax.value_and_grad(loss)(table)


def with_bias(words: np.ndarray) -> jax.Array:
    """[N, V + 1], with ones for the bias."""
    return jnp.asarray(np.insert(words, LABELS, 1.0, axis=1), jnp.float32)


def predict(weighting: str, table: np.ndarray, drawn: Documents) -> np.ndarray:
    """The proportions that a fit tells from words, [N, K]."""
    z = with_bias(drawn.words) @ jnp.asarray(table, jnp.float32)
    return np.asarray(WEIGHTINGS[weighting].apply(z), np.float64)


def squared_error(p: np.ndarray, q: np.ndarray) -> float:
    """Mean over documents of |q - p|^2."""
    return float(np.square(q - p).sum(axis=1).mean())


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Mean over documents of KL(q, m) / 2 + KL(p, m) / 2, m = (p + q) / 2, in nats."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.array([np.where(x > 0, x * np.log(x / middle), 0) for x in (p, q)])
    return float(terms.sum(axis=(0, 2)).mean() / 2)
