"""The batch of a step: rows of tokens, their targets, and how much each position counts."""

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
    """What one step learns from; B rows of L positions.

    Attributes:
      inputs: [B, L] token ids.
      targets: [B, L] token ids to predict at each position.
      weights: [B, L], how much each position counts in the loss; 0 at padding.
      segments: [B, L], the document of each position, 0 at padding.
      positions: [B, L], counted from 0 within the documents.
      encoder_inputs, encoder_segments, encoder_positions: [B, S], the same of the encoder's side of
        an encoder-decoder; document i there belongs to document i here.
      token_types: [B, L], the type of each position, such as 0 in a first and 1 in a second
        sentence; None: all 0.
      prefix: [B, L] boolean, positions that a decoder's earlier ones see too (prefix language
        models).
      target_positions: [B, T], the positions that a task reads out, where targets and weights are
      [B, T].
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array
    segments: jax.Array
    positions: jax.Array
    encoder_inputs: jax.Array | None = None
    encoder_segments: jax.Array | None = None
    encoder_positions: jax.Array | None = None
    token_types: jax.Array | None = None
    prefix: jax.Array | None = None
    target_positions: jax.Array | None = None
