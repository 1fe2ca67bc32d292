"""What stands before what is generated? Prompts of different lengths in one array, and what the
encoder reads.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.finetuning.tuned import room_of
from lm.model.transformer import Batch, Transformer


@flax.struct.dataclass
class Prompts:
    """B prompts, aligned at their ends, with room for what follows.

    Attributes:
      inputs: [B, P] token ids; P is the longest prompt's length.
      starts: [B], where each prompt begins.
      padding: [B, S] boolean, the places of the cache that hold tokens, now or later.
      prefix: [B, S] boolean, places that those before them see too; None: none.
      encoder_inputs, encoder_segments, encoder_positions: [B, M], what the encoder reads, aligned
        at the beginnings; None without an encoder.
    """

    inputs: Any
    starts: Any
    padding: Any
    prefix: Any = None
    encoder_inputs: Any = None
    encoder_segments: Any = None
    encoder_positions: Any = None

    def batch(self, inputs: jax.Array, offset: Any, fresh: bool) -> Batch:
        """Tokens [B, n] that stand at `offset`; with the memory where no cache holds its keys."""
        places = offset + jnp.arange(inputs.shape[1]) - self.starts[:, None]
        batch: Any = prompt_batch(inputs, jnp.maximum(places, 0))
        return batch.replace(
            encoder_inputs=self.encoder_inputs if fresh else None,
            encoder_segments=self.encoder_segments,
            encoder_positions=self.encoder_positions,
            prefix=self.prefix,
        )


def arrange(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    sources: Sequence[np.ndarray] | None,
    tokens: int,
    room: int,
    prefix: bool,
) -> Prompts:
    """Puts prompts, and what the encoder reads, into arrays.

    Args:
      model: says how many positions there are.
      prompts: B arrays of token ids, not empty.
      sources: B arrays of token ids for the encoder; None for a decoder.
      tokens: how many are asked for.
      room: places of the cache behind the prompts.
      prefix: the prompts' places all see each other.

    Raises:
      UserError: where the model generates nothing, or has too few positions.
    """
    if model.architecture == "encoder":
        raise UserError("an encoder tells hidden words, and generates none")
    if model.output_head().whole_rows:
        raise UserError("the head sees a row's later words, and generates none")
    longest = max(len(prompt) for prompt in prompts)
    _check_length(model, "a prompt", longest, tokens)
    size, length = len(prompts), longest + room
    inputs, padding = np.zeros((size, longest), np.int32), np.ones((size, length), bool)
    for row, prompt in enumerate(prompts):
        inputs[row, longest - len(prompt) :] = prompt
        padding[row, : longest - len(prompt)] = False
    arranged: Any = Prompts(
        inputs=jnp.asarray(inputs),
        starts=jnp.asarray([longest - len(prompt) for prompt in prompts]),
        padding=jnp.asarray(padding),
        prefix=jnp.asarray(padding & (np.arange(length) < longest)) if prefix else None,
    )
    if sources is None:
        return arranged
    _check_length(model, "a source", max(map(len, sources)), 0)
    memory = np.zeros((size, max(map(len, sources))), np.int32)
    segments = np.zeros_like(memory)
    for row, source in enumerate(sources):
        memory[row, : len(source)] = source
        segments[row, : len(source)] = 1
    places = np.broadcast_to(np.arange(memory.shape[1]), memory.shape)
    return arranged.replace(
        encoder_inputs=jnp.asarray(memory),
        encoder_segments=jnp.asarray(segments),
        encoder_positions=jnp.asarray(places),
    )


def _check_length(model: Transformer, what: str, longest: int, tokens: int) -> None:
    if longest + tokens > (room := room_of(model)):
        learned = model.max_seq_len - room
        less = f", {learned} of them for learned words" if learned else ""
        raise UserError(
            f"{what} of {longest} tokens and {tokens} more need {longest + tokens} positions, but "
            f"the model has config.model.max_seq_len = {model.max_seq_len}{less}; ask for fewer"
        )


def prompt_batch(inputs: jax.Array, positions: jax.Array) -> Batch:
    """A batch [B, L] of one document a row, without targets."""
    ones = jnp.ones_like(inputs)
    return Batch(inputs=inputs, targets=inputs, weights=ones, segments=ones, positions=positions)
