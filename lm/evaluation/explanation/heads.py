"""What attention heads do with a text: rollout over layers, entropies, support sizes and sinks."""

import numpy as np


def rollout(weights: np.ndarray) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema 2005.00928): how much of each token is in each state of
    the last layer, as far as attention and residuals alone say.

    With W_l the mean over heads of the absolute weights, its rows divided by their sums,

        R = A_n ... A_1,   A_l = (W_l + I) / 2.

    A row of no weight is that of I. Rows of R sum to one.

    Args:
      weights: [layers, H, L, L], rows of queries.

    Returns:
      float64 [layers, L, L], of the first layer, the first two, and so on.
    """
    size = weights.shape[-1]
    so_far, found = np.eye(size), []
    for layer in np.abs(weights.astype(np.float64)).mean(axis=1):
        total = layer.sum(axis=-1, keepdims=True)
        mixed = np.where(total > 0, layer / np.where(total > 0, total, 1.0), np.eye(size))
        so_far = (mixed + np.eye(size)) / 2 @ so_far
        found.append(so_far)
    return np.stack(found)


def support_sizes(weights: np.ndarray) -> np.ndarray:
    """How many keys each query gives a weight other than 0: int [..., Q] of weights [..., Q, S]."""
    return np.count_nonzero(weights, axis=-1)


def entropies(weights: np.ndarray) -> np.ndarray:
    """-sum_s p_s log p_s in nats, [..., Q], of p the absolute weights over their sum; 0 log 0 = 0,
    and a row of no weight has 0.
    """
    size = np.abs(weights.astype(np.float64))
    total = size.sum(axis=-1, keepdims=True)
    p = size / np.where(total > 0, total, 1.0)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=-1)


def received(weights: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The mean share of attention that each key gets from the queries that see it, [..., S].

    A key that gets most of it whatever the query is an attention sink (2309.17453).

    Args:
      weights: [..., Q, S].
      visible: boolean [Q, S].
    """
    size = np.abs(weights.astype(np.float64))
    total = size.sum(axis=-1, keepdims=True)
    p = size / np.where(total > 0, total, 1.0)
    return p.sum(axis=-2) / np.maximum(visible.sum(axis=0), 1)


def head_statistics(weights: np.ndarray, causal: bool) -> list[list[dict[str, float | int]]]:
    """Of each layer and head, over the queries of a text.

    Args:
      weights: [layers, H, L, L].
      causal: queries see no later keys.

    Returns:
      For each layer and head: "entropy", the mean in nats; "support_mean", "support_min",
      "support_max", keys with a weight; "row_sum", the mean sum of a row, less than 1 where a part
      goes to no key; "first_token", the mean share that the first key gets; "sink" and
      "sink_share", the key with the largest mean share, and this.
    """
    size = weights.shape[-1]
    visible = np.tri(size, dtype=bool) if causal else np.ones((size, size), bool)
    support, spread, gets = (
        support_sizes(weights),
        entropies(weights).mean(axis=-1),
        received(weights, visible),
    )
    # The last keys of a causal row have few queries that see them, which says little.
    often = visible.sum(axis=0) >= max(size // 2, 1)
    sinks = np.argmax(np.where(often, gets, -1.0), axis=-1)
    return [
        [
            {
                "entropy": float(spread[layer, head]),
                "support_mean": float(support[layer, head].mean()),
                "support_min": int(support[layer, head].min()),
                "support_max": int(support[layer, head].max()),
                "row_sum": float(weights[layer, head].sum(axis=-1).mean()),
                "first_token": float(gets[layer, head, 0]),
                "sink": int(sinks[layer, head]),
                "sink_share": float(gets[layer, head, sinks[layer, head]]),
            }
            for head in range(weights.shape[1])
        ]
        for layer in range(len(weights))
    ]
