"""Span corruption: spans are replaced by sentinels, and predicted behind these."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from lm.config import Key
from lm.data.objectives.base import MaskRate, Objective, row_keys
from lm.data.objectives.causal import positions_within
from lm.errors import UserError
from lm.model.batch import Batch


@dataclasses.dataclass(frozen=True)
class Span(Objective):
    """Span corruption by an encoder-decoder (T5, 1910.10683), drawn anew at every step.

    Of the n words of a row, round(n * mask_rate) are cut out in round(n * mask_rate /
    mean_span_length) spans that do not touch, all ways of doing so being equally likely. (T5's own
    code never cuts a row's first word out, and always its last.) The encoder reads the rest, with
    a sentinel in the place of each span; the decoder writes, after END, each sentinel and its
    span, and END. Every packed document is so treated for itself, with sentinels counted from its
    own beginning; a span that would go on into the next document ends with its own. Special tokens
    and padding are never cut out. Nats are per target token, sentinels and END among them, so they
    compare with those of other models of the same tokenizer, rate and span length, and not with
    bits per byte.

    Attributes:
      mask_rate: above 0, below 1.
      mean_span_length: mean length of a span, at least 1.
    """

    mask_rate: MaskRate = 0.15
    mean_span_length: Annotated[float, Key("corruption.mean_span_length", at_least=1)] = 3.0

    architecture = "encoder_decoder"

    def __post_init__(self):
        """UserError where a row can have more spans than there are sentinels."""
        sentinels = len(self.tokenizer.sentinels)
        if self.spans > sentinels:
            remedy = (
                f"set config.corruption.mean_span_length to {-(-self.cut // sentinels)} or more"
                if sentinels
                else "use bytes, bpe, wordpiece or unigram, which have them"
            )
            raise UserError(
                f"objective span cuts {self.spans} spans out of rows of {self.length} tokens, but "
                f"tokenizer {self.tokenizer.name} has {sentinels} sentinels; {remedy}"
            )

    @property
    def cut(self) -> int:
        """Tokens that are cut out of a full row."""
        return max(1, round(self.length * self.mask_rate))

    @property
    def spans(self) -> int:
        """Spans in a full row."""
        return max(1, round(self.cut / self.mean_span_length))

    @property
    def target_length(self) -> int:
        """Positions of the decoder: what is cut out, a sentinel for each span, and room for each
        to be alone in its document, which END closes.
        """
        return self.cut + 2 * self.spans

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """See `Objective`: the encoder's side is [B, L], the decoder's [B, `target_length`]."""
        tokens, segments = rows["tokens"][:, :-1], rows["segments"]
        words = jnp.asarray(self.tokenizer.ordinary)[tokens] & (segments > 0)
        arrays = jax.vmap(self._corrupt)(row_keys(key, rows["tokens"]), tokens, segments, words)
        encoder_inputs, encoder_segments, inputs, targets, segments = arrays
        return Batch(
            inputs=inputs,
            targets=targets,
            weights=(segments > 0).astype(jnp.float32),
            segments=segments,
            positions=positions_within(segments),
            encoder_inputs=encoder_inputs,
            encoder_segments=encoder_segments,
            encoder_positions=positions_within(encoder_segments),
        )

    def _corrupt(self, key, tokens, segments, words) -> tuple[jax.Array, ...]:
        """One row [L]: what the encoder reads, and its documents; inputs, targets, documents."""
        span = self._spans(key, segments, words)
        hidden = span >= 0
        begins = hidden & (span != jnp.pad(span[:-1], (1, 0), constant_values=-1))
        ends_document = segments != jnp.pad(segments[1:], (0, 1))
        sentinel = jnp.asarray(self.tokenizer.sentinels)[_count_within(begins, segments)]

        kept = (segments > 0) & (~hidden | begins)
        place = jnp.where(kept, jnp.cumsum(kept) - 1, self.length)
        read = jnp.where(begins, sentinel, tokens)
        encoder_inputs = _put(self.length, self.tokenizer.end, (place, read))
        encoder_segments = _put(self.length, 0, (place, segments))

        # A position may write a sentinel, a token of its span, and its document's END, in order.
        has_span = jnp.zeros(self.length + 1, bool).at[segments].max(hidden)[segments]
        closes = ends_document & has_span & (segments > 0)
        number = begins.astype(jnp.int32) + hidden + closes
        first, size = jnp.cumsum(number) - number, self.target_length
        of_sentinel = jnp.where(begins, first, size)
        of_token = jnp.where(hidden, first + begins, size)
        of_end = jnp.where(closes, first + begins + hidden, size)
        end = jnp.full_like(tokens, self.tokenizer.end)
        written = (of_sentinel, sentinel), (of_token, tokens), (of_end, end)
        targets = _put(size, self.tokenizer.end, *written)
        of_targets = _put(size, 0, *((place, segments) for place, _ in written))
        before = jnp.pad(targets[:-1], (1, 0), constant_values=self.tokenizer.end)
        opens = of_targets != jnp.pad(of_targets[:-1], (1, 0))
        inputs = jnp.where(opens, self.tokenizer.end, before)
        return encoder_inputs, encoder_segments, inputs, targets, of_targets

    def _spans(self, key: jax.Array, segments: jax.Array, words: jax.Array) -> jax.Array:
        """The span of each position of a row [L], counted from 0; -1 where nothing is cut out."""
        number = jnp.sum(words)
        cut = jnp.round(number * self.mask_rate).astype(jnp.int32)
        cut = jnp.clip(cut, 1, jnp.clip(number - 1, 0, self.cut))
        spans = jnp.round(cut / self.mean_span_length).astype(jnp.int32)
        spans = jnp.minimum(jnp.clip(spans, 1, self.spans), jnp.minimum(cut, number - cut))
        keys = [jax.random.fold_in(key, i) for i in range(2)]
        # Words alternate between a stretch that stays and a span that goes. Only the first and the
        # last stretch may be empty: they get a word more, which is then taken off.
        stays = _partition(keys[0], number - cut + 2, spans + 1, self.length + 2, self.spans + 1)
        stays = stays.at[0].add(-1).at[spans].add(-1)
        goes = _partition(keys[1], cut, spans, self.length, self.spans + 1)
        borders = jnp.cumsum(jnp.stack([stays, goes], axis=1).reshape(-1))
        stretch = jnp.searchsorted(borders, jnp.cumsum(words) - 1, side="right")
        hidden = words & (stretch % 2 == 1) & (stretch < 2 * spans)
        span = jnp.where(hidden, stretch // 2, self.spans)
        first = jnp.full(self.spans + 1, self.length + 1).at[span].min(segments)
        return jnp.where(hidden & (segments == first[span]), span, -1)


def _partition(key: jax.Array, total, parts, limit: int, slots: int) -> jax.Array:
    """Lengths, [slots], of `parts` runs that share `total` things, all ways equally likely."""
    places = jnp.arange(limit)
    chance = jax.random.uniform(key, (limit,))
    # A run begins at thing 0, and at as many others as there are further runs.
    chance = jnp.where(places == 0, -1.0, jnp.where(places < total, chance, 2.0))
    begins = jnp.zeros(limit, jnp.int32).at[jnp.argsort(chance)].set(places) < parts
    run = jnp.where(places < total, jnp.cumsum(begins) - 1, slots)
    return jnp.zeros(slots, jnp.int32).at[run].add(1, mode="drop")


def _count_within(begins: jax.Array, segments: jax.Array) -> jax.Array:
    """How many spans of the position's document began before the one that it is in, [L]."""
    count = jnp.cumsum(begins)
    opens = segments != jnp.pad(segments[:-1], (1, 0))
    before = jax.lax.cummax(jnp.where(opens, count - begins, 0))
    return jnp.maximum(count - before - 1, 0)


def _put(size: int, empty: int, *written: tuple[jax.Array, jax.Array]) -> jax.Array:
    """An array [size] of values at their places; `empty` elsewhere. Place `size` is none."""
    array = jnp.full(size, empty, jnp.int32)
    for places, values in written:
        array = array.at[places].set(values, mode="drop")
    return array
