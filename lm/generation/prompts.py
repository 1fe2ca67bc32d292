"""Encodes prompts and pads them, and the inputs of an encoder, to arrays."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.data import Tokenizer
from lm.errors import UserError
from lm.finetuning.adapted import max_text_len_of
from lm.model.transformer import Batch, Transformer


@flax.struct.dataclass
class Prompts:
    """B left-padded prompts, with space in the cache for new tokens.

    Attributes:
      inputs: [B, P] token ids; P is the longest prompt's length.
      starts: [B], where each prompt begins.
      padding: [B, S] boolean, cache positions that hold tokens, now or later.
      prefix: [B, S] boolean, positions that earlier ones attend to as well; None: none.
      encoder_inputs, encoder_segments, encoder_positions: [B, M], right-padded; None without an
        encoder.
    """

    inputs: jax.Array
    starts: jax.Array
    padding: jax.Array
    prefix: jax.Array | None = None
    encoder_inputs: jax.Array | None = None
    encoder_segments: jax.Array | None = None
    encoder_positions: jax.Array | None = None

    def batch(self, inputs: jax.Array, offset: jax.Array, fresh: bool) -> Batch:
        """Tokens [B, n] at `offset`; with the encoder's inputs where no cache holds its keys."""
        positions = offset + jnp.arange(inputs.shape[1]) - self.starts[:, None]
        batch = prompt_batch(inputs, jnp.maximum(positions, 0))
        return dataclasses.replace(
            batch,
            encoder_inputs=self.encoder_inputs if fresh else None,
            encoder_segments=self.encoder_segments,
            encoder_positions=self.encoder_positions,
            prefix=self.prefix,
        )


def pad_prompts(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    sources: Sequence[np.ndarray] | None,
    max_new_tokens: int,
    capacity: int,
    prefix: bool,
) -> Prompts:
    """Pads prompts, and the inputs of an encoder, to arrays.

    Args:
      model, prompts, sources, max_new_tokens, prefix: as for `generate`.
      capacity: positions of the cache after the prompts.

    Raises:
      UserError: where the model cannot generate, or has too few positions.
    """
    if model.config.architecture == "encoder":
        raise UserError("an encoder predicts masked tokens and cannot generate; use a decoder")
    if model.output_head().sequence_level:
        raise UserError("the output head reads whole sequences and cannot generate")
    longest = max(map(len, prompts))
    _check_length(model, "a prompt", longest, max_new_tokens)
    starts = np.array([longest - len(prompt) for prompt in prompts])
    real = np.arange(longest) >= starts[:, None]
    inputs = np.zeros(real.shape, np.int32)
    inputs[real] = np.concatenate(prompts)
    new = (0, 0), (0, capacity)
    padded = Prompts(
        inputs=jnp.asarray(inputs),
        starts=jnp.asarray(starts),
        padding=jnp.asarray(np.pad(real, new, constant_values=True)),
        prefix=jnp.asarray(np.pad(real, new)) if prefix else None,
    )
    if sources is None:
        return padded
    _check_length(model, "a source", longest := max(map(len, sources)), 0)
    real = np.arange(longest) < np.array([len(source) for source in sources])[:, None]
    encoder_inputs = np.zeros(real.shape, np.int32)
    encoder_inputs[real] = np.concatenate(sources)
    return dataclasses.replace(
        padded,
        encoder_inputs=jnp.asarray(encoder_inputs),
        encoder_segments=jnp.asarray(real, jnp.int32),
        encoder_positions=jnp.broadcast_to(jnp.arange(longest), real.shape),
    )


def _check_length(model: Transformer, name: str, longest: int, new: int) -> None:
    if longest + new > (available := max_text_len_of(model)):
        most = model.config.embedding.max_seq_len
        virtual = most - available
        taken = f", {virtual} of them for virtual tokens" if virtual else ""
        raise UserError(
            f"{name} of {longest} tokens and {new} more need {longest + new} positions, but the "
            f"model has config.model.max_seq_len = {most}{taken}; use fewer tokens"
        )


def prompt_batch(inputs: jax.Array, positions: jax.Array) -> Batch:
    """A batch [B, L] of one document a row, without targets."""
    ones = jnp.ones_like(inputs)
    return Batch(inputs=inputs, targets=inputs, weights=ones, segments=ones, positions=positions)


def prompt_ids(
    tokenizer: Tokenizer, prompts: Sequence[str], opens: Sequence[int]
) -> list[np.ndarray]:
    """Token ids of prompts, each after the tokens that open a text."""
    encoded = tokenizer.encode_batch(list(prompts))
    return [add_opening_tokens(tokenizer, each.ids, opens) for each in encoded]


def add_opening_tokens(tokenizer: Tokenizer, ids: np.ndarray, opens: Sequence[int]) -> np.ndarray:
    """A text after the tokens that open it. An empty one becomes the start token, as generation
    needs a position to continue from.
    """
    opened = np.concatenate([opens, ids]).astype(np.int32)
    return opened if len(opened) else np.array([tokenizer.start], np.int32)
