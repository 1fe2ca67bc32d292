"""Continuous batching: a cache of keys and values with a place for each of B texts, one program
that puts a prompt into a place, for each length of prompts, and one that adds a token to all.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from lm.devices.sharding import whole
from lm.generation.prompts import prompt_batch
from lm.generation.sample import request_key
from lm.model.transformer import Transformer
from lm.serving.buckets import bucket, buckets
from lm.serving.slot_sampling import Drawn, SlotSampling, describe_draw, sample_slots
from lm.serving.weights import Weights, head_draws, token_log_probs
from lm.training.program import Program


@flax.struct.dataclass
class SlotState:
    """What the device holds of the texts in B slots.

    Attributes:
      cache: keys and values, and whatever else the mechanisms keep; [B, ...], behind the axis of
        the layers where these are scanned, so that a layer of all slots lies together.
      last: [B], the newest token of each.
      offset: [B], at which position that stands.
      drawn: [B], how many tokens were drawn.
      keys: [B], each request's random key.
      sampling: its options.
      adapter: [B], the place of its adapter.
      memory: [B, M], 1 where the encoder of an encoder-decoder has read a token; None without one.
    """

    cache: Mapping[str, Any]
    last: jax.Array
    offset: jax.Array
    drawn: jax.Array
    keys: jax.Array
    sampling: SlotSampling
    adapter: jax.Array
    memory: jax.Array | None


class Admission(NamedTuple):
    """A request that enters a slot, as arrays of one row.

    Attributes:
      slot: which.
      tokens: [P], the prompt, padded behind.
      length: how many of them are the prompt's.
      seed, crc, repeat: see `lm.generation.sample.request_key`.
      sampling: its options.
      adapter: the place of its adapter.
      source: [M], what an encoder reads, padded behind; None without one.
      source_length: how many of them count.
    """

    slot: jax.Array
    tokens: jax.Array
    length: jax.Array
    seed: jax.Array
    crc: jax.Array
    repeat: jax.Array
    sampling: SlotSampling
    adapter: jax.Array
    source: jax.Array | None = None
    source_length: jax.Array | None = None


class Slots:
    """The programs of B slots, and their state on the device.

    Every program is compiled by `compile`; afterwards nothing is.

    Attributes:
      number: B.
      length: S, the positions of a prompt and its continuation together.
    """

    def __init__(self, program: Program, number: int, length: int, prefix: bool = False):
        """Makes the programs of a model; `prefix`: prompt positions attend to each other."""
        self.number, self.length = number, length
        self._model, self._prefix = program.model, prefix
        self._encodes = program.model.config.encoder is not None
        self._axis = int(program.model.config.stack.scanned)  # of the slots, in the cache
        self._mesh = program.mesh
        everywhere = whole(program.mesh)
        self._prefill = jax.jit(self._prefill_one, donate_argnums=1, out_shardings=everywhere)
        self._decode = jax.jit(
            self._decode_all, static_argnums=0, donate_argnums=2, out_shardings=everywhere
        )
        self._offsets = np.zeros(number, int)  # of the newest token of each slot
        self._make_state = jax.jit(self._empty, static_argnums=1, out_shardings=everywhere)
        self.state: SlotState | None = None

    def compile(self, weights: Weights, sampling: SlotSampling) -> Iterator[None]:
        """Runs every program once, so that all are compiled; yields after each."""
        self.reset(weights, sampling)
        for size in buckets(self.length):
            text = np.zeros(1 if self._encodes else size, np.int32)
            source = np.zeros(size, np.int32) if self._encodes else None
            self.admit(weights, 0, text, (0, 0, 0), sampling, 0, source)
            yield
        for size in buckets(self.length):
            self._offsets[0] = size - 1
            jax.block_until_ready(self.decode(weights, [0]))
            yield
        self.reset(weights, sampling)

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        return self._prefill._cache_size() + self._decode._cache_size()  # pyright: ignore

    def reset(self, weights: Weights, sampling: SlotSampling) -> None:
        """Empties all slots."""
        self.state = None
        with jax.set_mesh(self._mesh):
            self.state = self._make_state(weights, self.number, sampling)

    def admit(
        self,
        weights: Weights,
        slot: int,
        prompt: np.ndarray,
        seed: tuple[int, int, int],
        sampling: SlotSampling,
        adapter: int,
        source: np.ndarray | None = None,
    ) -> Drawn:
        """Puts a prompt into a slot and draws its first new token; what was there is overwritten.

        Args:
          weights: of the model.
          slot: 0 .. B - 1.
          prompt: its token ids, 1 to S - 1.
          seed: the seed, CRC-32 and repeat of `lm.generation.sample.request_key`.
          sampling: of one slot.
          adapter: the place of its adapter.
          source: of an encoder-decoder, what the encoder reads.

        Returns:
          The draw, arrays of one row, maybe not computed yet.
        """
        arrays: dict[str, Any] = {"slot": np.int32(slot), "adapter": np.int32(adapter)}
        arrays["tokens"], arrays["length"] = self._padded(prompt)
        if source is not None:
            arrays["source"], arrays["source_length"] = self._padded(source)
        numbers = {"seed": np.int32, "crc": np.uint32, "repeat": np.uint32}
        for (name, kind), value in zip(numbers.items(), seed, strict=True):
            arrays[name] = kind(value)
        self._offsets[slot] = len(prompt)
        with jax.set_mesh(self._mesh):
            self.state, drawn = self._prefill(
                weights, self.state, Admission(**arrays, sampling=sampling)
            )
        return drawn

    def decode(self, weights: Weights, active: Collection[int]) -> Drawn:
        """Adds a token to every slot; those of slots that are not active mean nothing.

        As much of the cache is read as the longest text of the active slots takes, rounded up to
        one of the lengths of `buckets`.
        """
        self._offsets = np.minimum(self._offsets, self.length - 1)
        longest = max(int(self._offsets[slot]) for slot in active) + 1
        with jax.set_mesh(self._mesh):
            self.state, drawn = self._decode(bucket(longest, self.length), weights, self.state)
        self._offsets += 1
        return drawn

    def _padded(self, tokens: np.ndarray) -> tuple[np.ndarray, np.int32]:
        size = bucket(len(tokens), self.length)
        return np.pad(tokens, (0, size - len(tokens))).astype(np.int32), np.int32(len(tokens))

    def _empty(self, weights: Weights, number: int, sampling: SlotSampling) -> SlotState:
        """The state of `number` empty slots."""
        length = 1 if self._encodes else self.length
        nothing = np.zeros(length, np.int32)
        source = np.zeros(self.length, np.int32) if self._encodes else None
        one = functools.partial(self._read_prompt, capacity=self.length)
        count = np.int32(1)
        _, shapes = jax.eval_shape(one, weights.select(0), nothing, count, source, count)
        zeros = jnp.zeros(number, jnp.int32)
        return SlotState(
            cache=jax.tree.map(
                lambda x: jnp.zeros(np.insert(x.shape, self._axis, number), x.dtype), shapes
            ),
            last=zeros,
            offset=zeros,
            drawn=zeros,
            keys=jax.vmap(jax.random.key)(zeros),
            sampling=jax.tree.map(lambda x: jnp.broadcast_to(x, (number,)), sampling),
            adapter=zeros,
            memory=jnp.zeros((number, self.length), jnp.int32) if self._encodes else None,
        )

    def _read_prompt(
        self,
        params: Mapping[str, Any],
        tokens: jax.Array,
        length: jax.Array,
        source: jax.Array | None,
        source_length: jax.Array | None,
        capacity: int,
    ) -> tuple[jax.Array, Any]:
        """The head's input [1, D] at a prompt's last token, and a cache of `capacity` positions.

        Positions behind the prompt are computed too: later tokens do not see them, and overwrite
        them.
        """
        places = jnp.arange(len(tokens))[None]
        batch = prompt_batch(tokens[None], places)
        if self._prefix:
            within = jnp.arange(capacity)[None] < length
            batch = dataclasses.replace(batch, prefix=within)
        if source is not None and source_length is not None:
            at = jnp.arange(len(source))[None]
            batch = dataclasses.replace(
                batch,
                encoder_inputs=source[None],
                encoder_segments=(at < source_length).astype(jnp.int32),
                encoder_positions=at,
            )
        hidden, cache = self._states(params, None, batch, jnp.zeros((), jnp.int32), capacity)
        return jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1, keepdims=False), cache

    def _states(self, params, cache, batch, offset, capacity) -> tuple[jax.Array, Any]:
        """The head's inputs [1, n, D] of tokens at `offset`, and a cache of `capacity` positions,
        or what is to be written at `offset` of the one that is given.
        """
        changed = "cache" if cache is None else "written"
        hidden, updated = self._model.apply(
            {"params": params} | ({} if cache is None else {"cache": cache}),
            batch,
            offset=offset,
            padding=jnp.ones((1, capacity), bool),
            cache_length=capacity,
            method="head_inputs",
            mutable=[changed],
        )
        return hidden, updated[changed]

    def _prefill_one(
        self, weights: Weights, state: SlotState, new: Admission
    ) -> tuple[SlotState, Drawn]:
        params = weights.select(new.adapter)
        # An encoder-decoder's own text begins with what it is started by.
        capacity = self.length if self._encodes else len(new.tokens)
        hidden, cache = self._read_prompt(
            params, new.tokens, new.length, new.source, new.source_length, capacity
        )
        key = request_key(new.seed, new.crc, new.repeat)
        options = jax.tree.map(lambda x: jnp.asarray(x)[None], new.sampling)
        drawn = self._draw(
            weights, hidden, key[None], jnp.zeros(1, jnp.int32), options, new.adapter[None]
        )

        def write(all_: jax.Array, one: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(all_, one, new.slot, self._axis)

        def put(all_: jax.Array, one: ArrayLike) -> jax.Array:
            return all_.at[new.slot].set(one)

        memory = state.memory
        if memory is not None and new.source_length is not None:
            real = (jnp.arange(self.length) < new.source_length).astype(jnp.int32)
            memory = put(memory, real)
        state = SlotState(
            cache=jax.tree.map(write, state.cache, cache),
            last=put(state.last, drawn.token[0]),
            offset=put(state.offset, new.length),
            drawn=put(state.drawn, 1),
            keys=put(state.keys, key),
            sampling=jax.tree.map(put, state.sampling, new.sampling),
            adapter=put(state.adapter, new.adapter),
            memory=memory,
        )
        return state, drawn

    def _decode_all(
        self, extent: int, weights: Weights, state: SlotState
    ) -> tuple[SlotState, Drawn]:
        """The next token of every slot, from the first `extent` positions of the cache."""

        def one(cache, last, offset, adapter, memory) -> tuple[jax.Array, Any]:
            batch = prompt_batch(last[None, None], offset[None, None])
            if memory is not None:
                batch = dataclasses.replace(
                    batch,
                    encoder_segments=memory[None],
                    encoder_positions=jnp.arange(len(memory))[None],
                )
            params = weights.select(adapter)
            hidden, written = self._states(params, cache, batch, offset, extent)
            return hidden[0, 0], written

        last = jnp.maximum(state.last, 0)  # -1 where probabilities were NaN
        rows = state.cache, last, state.offset, state.adapter, state.memory
        slots = self._axis
        hidden, written = jax.vmap(one, (slots, 0, 0, 0, 0), (0, slots))(*rows)
        cache = self._with_written(state.cache, written, state.offset)
        drawn = self._draw(weights, hidden, state.keys, state.drawn, state.sampling, state.adapter)
        state = dataclasses.replace(
            state,
            cache=cache,
            last=drawn.token,
            # A slot whose text has ended goes on until another takes it, at the last position.
            offset=jnp.minimum(state.offset + 1, self.length - 1),
            drawn=state.drawn + 1,
        )
        return state, drawn

    def _with_written(
        self, cache: Mapping[str, Any], written: Mapping[str, Any], offset: jax.Array
    ) -> Mapping[str, Any]:
        """The cache with what each slot has written at its offset [B]; nothing else is copied."""
        leaves: dict[Any, Any] = flatten_dict(cache)
        new: dict[Any, Any] = flatten_dict(written)
        for path, columns in new.items():
            leaf = leaves[path]
            places = leaf.shape[-2] - self.length + offset  # behind virtual tokens
            layers = (slice(None),) * self._axis
            at = (*layers, jnp.arange(self.number), ..., places, slice(None))
            columns = jnp.moveaxis(columns.squeeze(-2), self._axis, 0)
            leaves[path] = leaf.at[at].set(columns, unique_indices=True)
        return unflatten_dict(leaves)

    def _draw(self, weights, hidden, keys, drawn, options, adapter) -> Drawn:
        """A token for each of B slots, given the inputs of the head [B, D]."""
        model: Transformer = self._model
        keys = jax.vmap(jax.random.fold_in)(keys, drawn)
        log_probs = token_log_probs(model, weights, hidden, adapter)
        tokens = sample_slots(log_probs, keys, options)
        own = head_draws(model, weights, hidden, adapter, keys)
        if own is not None:
            tokens = jnp.where(options.unmodified & (tokens >= 0), own, tokens)
        return describe_draw(log_probs, tokens)
