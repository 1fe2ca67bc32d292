"""Learned virtual tokens: prompts of word vectors before the text, prefixes of keys and values."""

import dataclasses
import functools
import inspect
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.attention.mask import ALL_SEGMENTS, Mask
from lm.config import Key
from lm.finetuning.method import Args, Call, Context, Kwargs
from lm.model.embedding import Embedding
from lm.model.layers import Stack
from lm.model.multihead import MultiHeadAttention
from lm.model.transformer import Transformer

NumVirtualTokens = Annotated[int, Key("finetuning.num_virtual_tokens", at_least=1)]


class Vectors(nn.Module):
    """Learned vectors in front of others along axis 1: [B, L, ...] -> [B, P + L, ...].

    Attributes:
      number: P.
      vectors_init: initialiser.
    """

    number: int
    vectors_init: nn.initializers.Initializer
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """See the class."""
        shape = (self.number, *x.shape[2:])
        own = self.param("vectors", self.vectors_init, shape, self.param_dtype)
        own = jnp.broadcast_to(own.astype(x.dtype), (x.shape[0], *own.shape))
        return jnp.concatenate([own, x], axis=1)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """P learned token vectors before every row, at positions 0 to P - 1 (2104.08691).

    Every document of a packed row sees them, at positions P on: distances to them are those of the
    document alone. In an encoder they see the row's text as well, unless that is of several
    documents, which would then see each other; `lm.training.validate_options.check_packed` refuses
    to train so. Those of an encoder-decoder stand before the encoder's text.

    Attributes:
      num_virtual_tokens: P, at least 1.
    """

    num_virtual_tokens: NumVirtualTokens = 20

    name: ClassVar[str] = "prompt"

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Watches the calls of the whole model; an interceptor of `flax.linen`."""
        model = context.module
        if not isinstance(model, Transformer) or context.method_name != "__call__":
            return call(*args, **kwargs)
        # A cache that exists holds the prompt's keys.
        fresh = "cache" not in model.variables
        decodes = model.config.encoder is None
        modules = ("inputs", "stack") if decodes else ("encoder_inputs", "encoder")
        with nn.intercept_methods(functools.partial(self._in_stack, modules, fresh)):
            return call(*args, **kwargs)

    def _in_stack(
        self,
        modules: tuple[str, str],
        fresh: bool,
        call: Call,
        args: Args,
        kwargs: Kwargs,
        context: Context,
    ) -> jax.Array:
        module, number = context.module, self.num_virtual_tokens
        if module.name not in modules or context.method_name != "__call__":
            return call(*args, **kwargs)
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        given["positions"] = given["positions"] + number
        if fresh:
            own = jnp.broadcast_to(jnp.arange(number), (len(given["positions"]), number))
            given["positions"] = jnp.concatenate([own, given["positions"]], axis=1)
        if isinstance(module, Embedding):
            numerics = module.config.numerics
            options = {"param_dtype": numerics.dtypes["param_dtype"], "name": self.name}
            vectors: Any = Vectors(number, numerics.init, **options)
            words = vectors(given["words"])
            given["words"] = words if fresh else given["words"]
            if fresh and given["types"] is not None:
                given["types"] = _pad_before(given["types"], number, 0)
            return call(**given)
        assert isinstance(module, Stack)
        if given.get("cache_length") is not None:
            given["cache_length"] += number
            given["mask"] = self._decoding(given["mask"], given["positions"], fresh)
        else:
            given["mask"] = self._visible(given["mask"], given["positions"])
        y = call(**given)
        return y[:, number:] if fresh else y

    def _visible(self, mask: Mask, positions: jax.Array) -> Mask:
        """The mask of a text, for prompt and text."""
        segments, number = mask.segments, self.num_virtual_tokens
        assert segments is not None and mask.padding is None
        document = jnp.max(segments, axis=1, keepdims=True)
        alone = jnp.all((segments == document) | (segments == 0), axis=1, keepdims=True)
        own = jnp.broadcast_to(jnp.where(alone, document, ALL_SEGMENTS), (len(segments), number))
        return dataclasses.replace(
            mask,
            segments=jnp.concatenate([own, segments], axis=1),
            key_segments=_pad_before(segments, number, ALL_SEGMENTS),
            prefix=None if mask.prefix is None else _pad_before(mask.prefix, number, True),
            positions=positions,
        )

    def _decoding(self, mask: Mask, positions: jax.Array, fresh: bool) -> Mask:
        offset: Any = mask.offset
        number, prefix = self.num_virtual_tokens, mask.prefix
        assert mask.padding is not None
        padding = _pad_before(mask.padding, number, True)
        mask = dataclasses.replace(
            mask,
            offset=offset if fresh else offset + number,
            padding=padding,
            prefix=None if prefix is None else _pad_before(prefix, number, True),
            positions=positions,
        )
        places = jnp.arange(padding.shape[1])
        own = jnp.where(places < number, places, _cached_positions(mask, places))
        return dataclasses.replace(mask, key_positions=own)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """P learned keys and values before those of every layer's text (2101.00190).

    Every query sees them, of whatever document, at positions -P to -1 of it: distances count so,
    and nothing else does. Learned directly, without the paper's network that makes them, which is
    dropped after training.

    Attributes:
      num_virtual_tokens: P, at least 1.
    """

    num_virtual_tokens: NumVirtualTokens = 20

    name: ClassVar[str] = "prefix"

    def __call__(self, call: Call, args: Args, kwargs: Kwargs, context: Context) -> jax.Array:
        """Adds to what self-attention attends to; an interceptor of `flax.linen`."""
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, MultiHeadAttention) and not module.config.cross:
            given = inspect.signature(call).bind(*args, **kwargs).arguments
            length = given.get("cache_length")
            given["mask"] = _positioned(given["mask"], given["positions"], length)
            return call(**given)
        if module.path[-2:] != ("attention", "mechanism"):
            return call(*args, **kwargs)
        query, key, value, mask, *rest = args
        options = {"vectors_init": nn.initializers.normal(0.02), "param_dtype": jnp.float32}
        more = [
            Vectors(self.num_virtual_tokens, **options, name=f"{self.name}_{kind}")
            for kind in ("key", "value")
        ]
        key, value = more[0](key), more[1](value)
        return call(query, key, value, self._visible(mask), *rest, **kwargs)

    def _visible(self, mask: Mask) -> Mask:
        number, segments, positions = self.num_virtual_tokens, mask.segments, mask.positions
        assert positions is not None
        key_positions = positions if mask.key_positions is None else mask.key_positions
        own = jnp.broadcast_to(jnp.arange(-number, 0), (len(key_positions), number))
        return dataclasses.replace(
            mask,
            offset=number + (0 if mask.offset is None else mask.offset),
            key_segments=None if segments is None else _pad_before(segments, number, ALL_SEGMENTS),
            padding=None if mask.padding is None else _pad_before(mask.padding, number, True),
            prefix=None if mask.prefix is None else _pad_before(mask.prefix, number, True),
            key_positions=jnp.concatenate([own, key_positions], axis=1),
        )


def _positioned(mask: Mask, positions: jax.Array, cache_length: int | None) -> Mask:
    """The mask with the positions [B, Q] of its queries, and of a cache's keys; else as it was."""
    if mask.positions is not None:
        return mask
    mask = dataclasses.replace(mask, positions=positions)
    if cache_length is None:
        return mask
    cached = _cached_positions(mask, jnp.arange(cache_length))
    return dataclasses.replace(mask, key_positions=cached)


def _cached_positions(mask: Mask, places: jax.Array) -> jax.Array:
    """Positions [B, S] of a text that ends with the last query, at `places` [S] of a cache."""
    positions: Any = mask.positions
    offset: Any = mask.offset
    return positions[:, -1:] + places - (offset + positions.shape[1] - 1)


def _pad_before(x: jax.Array, number: int, value: int | bool) -> jax.Array:
    """[B, L] to [B, P + L], with a value at the first P positions."""
    return jnp.pad(x, ((0, 0), (number, 0)), constant_values=value)
