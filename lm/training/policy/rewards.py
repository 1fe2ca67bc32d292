"""Rewards: functions of a prompt and its continuation, as texts, computed on the host. The table is
at the foot.
"""

import ast
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.data import Tokenizer

# (prompt, continuation, how many tokens the continuation has of those that it may have) -> reward
Reward = Callable[[str, str, float], float]
# (tokens [N, P + T], which of the last T were generated [N, T]) -> rewards [N]
RewardOfTokens = Callable[[jax.Array, jax.Array], jax.Array]


def python_lines(prompt: str, continuation: str, share: float) -> float:
    """The share of a continuation's whole lines that are statements of Python, 0 to 1.

    A line counts by itself, without its indentation; one that opens a block, as if the block
    followed. The line that the prompt began and the one that the end cuts off are left out, so are
    empty ones; comments and text are no statements. 0 where no line is left.
    """
    lines = [line.strip() for line in continuation.split("\n")[1:-1]]
    lines = [line for line in lines if line]
    return sum(map(_is_statement, lines)) / max(len(lines), 1)


def brevity(prompt: str, continuation: str, share: float) -> float:
    """The share of the tokens that a continuation leaves unused, from 0 to less than 1."""
    return 1.0 - share


def _is_statement(line: str) -> bool:
    clause = line.startswith(("elif ", "else:"))
    return any(map(_parses, (line, f"if x:\n pass\n{line} pass" if clause else f"{line} pass")))


@functools.lru_cache(maxsize=100_000)
def _parses(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    last = body[-1] if body else None
    words = isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant | ast.Name)
    return last is not None and not words


def reward_of_tokens(reward: Reward, tokenizer: Tokenizer) -> RewardOfTokens:
    """A reward as a function of tokens within a compiled step, which asks the host for it."""

    def on_host(tokens: np.ndarray, written: np.ndarray) -> np.ndarray:
        tokens, written = np.asarray(tokens), np.asarray(written)
        prompts = _texts(tokenizer, tokens[:, : -written.shape[1]])
        new = [row[own] for row, own in zip(tokens[:, -written.shape[1] :], written, strict=True)]
        found = map(reward, prompts, _texts(tokenizer, new), written.mean(axis=1).tolist())
        return np.fromiter(found, np.float32)

    def rewards(tokens: jax.Array, written: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(tokens.shape[:1], jnp.float32)
        return jax.pure_callback(on_host, shape, tokens, written, vmap_method="sequential")

    return rewards


def _texts(tokenizer: Tokenizer, rows: np.ndarray | list[np.ndarray]) -> list[str]:
    """The text of each row of tokens."""
    return [tokenizer.decode(row.tolist()) for row in rows]


REWARDS: dict[str, Reward] = {"python_lines": python_lines, "brevity": brevity}
