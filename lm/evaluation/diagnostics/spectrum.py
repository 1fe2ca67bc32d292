"""The singular values of log-probabilities [contexts, tokens], never in memory at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

# Heads compute in float32. What its rounding (1.2e-7 of an entry) adds to a singular value stays
# below a few times that of the largest one; values below this share of it are rounding errors.
NOISE = 1e-6
_ENTRIES = 2**24  # of a block, 128 MB in float64


class Spectrum(NamedTuple):
    """Singular values of a matrix, and how many there are in effect.

    Attributes:
      singular: the values, falling.
      rank: how many exceed `NOISE` times the largest.
      entropy_rank: exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j: what Roy and Vetterli (The
        effective rank, EUSIPCO 2007) call the effective rank. 1 where one direction has all, n
        where n share equally.
    """

    singular: np.ndarray
    rank: int
    entropy_rank: float


def spectrum(singular: np.ndarray) -> Spectrum:
    """Summarises singular values, falling; all zero have rank 0 and entropy rank 0."""
    if not singular.size or singular[0] == 0:
        return Spectrum(singular, 0, 0.0)
    shares = singular[singular > 0] / singular.sum()
    entropy = -float(np.sum(shares * np.log(shares)))
    return Spectrum(singular, int(np.sum(singular > NOISE * singular[0])), float(np.exp(entropy)))


def spectra(blocks: Iterable[np.ndarray]) -> tuple[Spectrum, Spectrum]:
    """Spectra of a matrix [contexts, tokens], and of the same with each row's mean subtracted.

    Row means depend on a constant added to all logits of a context, to which a softmax is
    invariant: without them the rank of a linear head is at most D, and with them D + 1.

    A QR decomposition is folded over the blocks, [1, A'] = Q R, in float64: singular values are
    right to about 1e-16 of the largest. (A Gram matrix would have it squared, and lose the lower
    half of the digits.) Leaving out the column of ones, and then its row, gives both matrices.

    Args:
      blocks: the transposed matrix in blocks of tokens, [tokens, contexts] each.
    """
    folded = fold(np.insert(block, 0, 1.0, axis=1) for block in blocks)
    matrices = folded[:, 1:], folded[1:, 1:]
    whole, centred = (spectrum(np.linalg.svd(each, compute_uv=False)) for each in matrices)
    return whole, centred


def fold(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """R, [n, n], of the QR decomposition of blocks [m, n] on top of each other, one at a time.

    (Demmel, Grigori, Hoemmen, Langou 0808.2664.)
    """
    folded = None
    for block in blocks:
        stacked = block if folded is None else np.concatenate([folded, block])
        folded = np.asarray(np.linalg.qr(stacked, mode="r"))
    assert folded is not None
    return folded


def token_blocks(
    log_probs: Callable[[Any], Any], hidden: np.ndarray, vocab_size: int
) -> Iterator[np.ndarray]:
    """Log-probabilities transposed, [tokens, contexts] float64, in blocks of tokens.

    Where contexts times tokens exceed a block, contexts are taken in parts and all tokens are
    computed for every block, since a head normalizes over all tokens: more time, constant memory.

    Args:
      log_probs: [n, ...] -> [n, V].
      hidden: [contexts, ...].
      vocab_size: V.
    """
    tokens = max(1, _ENTRIES // len(hidden))
    contexts = max(1, _ENTRIES // vocab_size)
    for start in range(0, vocab_size, tokens):
        parts = [
            np.asarray(log_probs(hidden[i : i + contexts]))[:, start : start + tokens].astype("f8")
            for i in range(0, len(hidden), contexts)
        ]
        yield np.concatenate(parts).T
