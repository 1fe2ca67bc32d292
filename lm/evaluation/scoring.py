"""Computes the log-likelihood of rows' targets in batches of a few shapes; of equal rows once."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.devices import sharding
from lm.evaluation.row_outputs import row_outputs
from lm.evaluation.scored_row import ScoredRow
from lm.finetuning.adapted import max_text_len_of
from lm.generation.decode import StaticModel, next_token_log_probs
from lm.model.transformer import Batch
from lm.training.program import Program

_TOGETHER = 64  # targets whose log-probabilities are computed at a time


def score_rows(
    program: Program, params: Mapping[str, Any], rows: Sequence[ScoredRow], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The log-likelihood of each row's targets in nats, and whether each of them is the likeliest.

    Args:
      program, params: the model, its mesh, and all of its parameters.
      rows: N of them.
      batch_size: rows in a batch; a multiple of data * fsdp devices.

    Returns:
      Float64 [N], sum_t log p(target_t | inputs up to its position), and boolean [N].
    """
    kinds: dict[tuple[int, int, int], dict[Any, ScoredRow]] = {}
    for row in rows:
        kinds.setdefault(row.sizes(max_text_len_of(program.model)), {})[row.key] = row
    score = jax.jit(score_batch, static_argnums=0, out_shardings=sharding.whole(program.mesh))
    found: dict[Any, tuple[float, bool]] = {}
    for sizes, unique in kinds.items():
        keys = list(unique)
        table = [row.padded(sizes) for row in unique.values()]
        scored = functools.partial(score, StaticModel(program.model), params)
        for index, outputs in row_outputs(program.mesh, table, batch_size, scored):
            found[keys[index]] = float(outputs["total"]), bool(outputs["likeliest"])
    totals, likeliest = ([found[row.key][i] for row in rows] for i in range(2))
    return np.array(totals, np.float64), np.array(likeliest, bool)


def score_batch(
    static: StaticModel, params: Mapping[str, Any], rows: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Of B rows their numbers, sums of log-probabilities, and whether all targets are hits."""
    inputs, encoder_inputs = rows["inputs"], rows.get("encoder_inputs")
    batch = Batch(
        inputs=inputs,
        targets=inputs,
        weights=rows["segments"].astype(jnp.float32),
        segments=rows["segments"],
        positions=_positions(inputs),
        encoder_inputs=encoder_inputs,
        encoder_segments=rows.get("encoder_segments"),
        encoder_positions=None if encoder_inputs is None else _positions(encoder_inputs),
        prefix=rows["prefix"] > 0 if "prefix" in rows else None,
    )
    hidden: Any = static.model.apply({"params": params}, batch, method="head_inputs")
    hidden = jnp.take_along_axis(hidden, rows["target_positions"][:, :, None], axis=1)
    missing = -rows["targets"].size % _TOGETHER

    def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        log_probs = next_token_log_probs(static.model, params, part[0])
        found = jnp.take_along_axis(log_probs, part[1][:, None], axis=1)[:, 0]
        return found, log_probs.argmax(axis=1) == part[1]

    flat = hidden.reshape(-1, hidden.shape[-1]), rows["targets"].reshape(-1)
    parts = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in flat]
    parts = [x.reshape(-1, _TOGETHER, *x.shape[1:]) for x in parts]
    shape = rows["targets"].shape
    log_probs, hits = (
        x.reshape(-1)[: -missing or None].reshape(shape) for x in jax.lax.map(score, tuple(parts))
    )
    mask = rows["target_mask"] > 0
    return {
        "row": rows["row"],
        "total": jnp.sum(jnp.where(mask, log_probs, 0.0), axis=1),
        "likeliest": jnp.all(hits | ~mask, axis=1),
    }


def _positions(tokens: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
