"""Time and FLOPs of the adaptive softmax beside the full one (1609.04309)."""

import itertools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from experiments.timing import interleaved, median_ratio
from lm.output import OUTPUTS
from lm.output.adaptive import cluster_starts

SEEDS = (0, 1, 2)  # of the tokens
VOCABULARY, FEATURES, TOKENS = 65_536, 256, 2048
ROUNDS = 3
NAMES = ("softmax", "adaptive")


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """The full softmax's time and FLOPs over the adaptive one's, of loss and gradients."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    tokens = rng.choice(VOCABULARY, TOKENS, p=shares / shares.sum())
    functions = {name: loss_and_gradients(name, VOCABULARY, FEATURES, tokens) for name in NAMES}
    calls = {
        name: lambda step=step: jax.block_until_ready(step()) for name, step in functions.items()
    }
    for call in calls.values():
        call()
    times = interleaved(calls, ROUNDS)
    full = flops(VOCABULARY, FEATURES, tokens)
    return {
        "time": median_ratio(times["softmax"], times["adaptive"]),
        "flops": full / adaptive_flops(tokens),
    }


def loss_and_gradients(name: str, vocab_size: int, features: int, tokens: np.ndarray):
    """A compiled function of no arguments: loss, and gradients in hidden states and parameters."""
    compiled, arguments = compile_head(name, vocab_size, features, tokens)
    return lambda: compiled(*arguments)


def compile_head(
    name: str, vocab_size: int, features: int, tokens: np.ndarray, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """The compiled function of a head, and its arguments."""
    head = OUTPUTS[name](vocab_size, features, **options)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(len(tokens), features)), jnp.float32)
    targets, weights = jnp.asarray(tokens), jnp.ones(len(tokens))
    params = head.init(jax.random.key(0), hidden[:1], targets[:1], method="loss")["params"]

    def total(params, hidden):
        return head.apply({"params": params}, hidden, targets, weights, method="loss_sum")

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    return step.lower(params, hidden).compile(), (params, hidden)


def flops(vocab_size: int, features: int, tokens: np.ndarray) -> float:
    """What the compiler counts for a softmax of this size, computed at once."""
    compiled, _ = compile_head("softmax", vocab_size, features, tokens, token_chunk_size=0)
    return float(compiled.cost_analysis()["flops"])


def adaptive_flops(tokens: np.ndarray) -> float:
    """Of the head, for all tokens, and of each cluster, for its own, with its projection: each is a
    softmax of its size. (The compiler counts the body of the clusters' loops once.)
    """
    frequent, *_ = starts = cluster_starts(None, VOCABULARY)
    total = flops(frequent + len(starts) - 1, FEATURES, np.zeros_like(tokens))
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        count = int(((tokens >= start) & (tokens < end)).sum())
        size = FEATURES // 4 ** (number + 1)
        if count:
            total += flops(end - start, size, np.zeros(count, int))
            total += 3 * 2 * count * FEATURES * size
    return total
