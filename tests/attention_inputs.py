"""Arrays for mechanisms of `ATTENTIONS`, and what is expected of them, shared by their tests."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.attention import ATTENTIONS, Mask, attend
from lm.attention.base import LayerContext

B, L, H, K, D = 2, 12, 4, 8, 6
SEGMENTS = np.array([[1] * 5 + [2] * 7, [1] * 9 + [2] * 2 + [0]], np.int32)
CAUSAL = [name for name, mechanism in ATTENTIONS.items() if mechanism.causal_only]
EITHER = [name for name in ATTENTIONS if name not in CAUSAL]
PLAIN_CORE = [name for name, mechanism in ATTENTIONS.items() if not mechanism.owns_weights]


def tensors(length=L, groups=2, seed=0, batch=B):
    """Query, key, value and the layer's inputs."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, H, K)] + [(batch, length, groups, K)] * 2 + [(batch, length, D)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def apply(name, arrays, mask, params=None, **options):
    """The mechanism's contexts; its initial parameters, moved so that each of them matters."""
    module = ATTENTIONS[name](**options)
    query, key, value, inputs = arrays
    arguments = (query, key, value, mask, LayerContext(inputs=inputs))
    if params is None:
        params = module.init(jax.random.key(0), *arguments).get("params", {})
        leaves, tree = jax.tree.flatten(params)
        keys = (jax.random.fold_in(jax.random.key(1), i) for i in range(len(leaves)))
        leaves = [
            x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=False)
        ]
        params = jax.tree.unflatten(tree, leaves)
    return module.apply({"params": params}, *arguments)


def plain(arrays, mask=Mask(causal=True, segments=SEGMENTS)):  # noqa: B008 (frozen)
    return attend(*arrays[:3], mask=mask)


def dense(mask, length=L):
    """The mask as a boolean [B, L, L], by loops."""
    seen = np.ones((B, length, length), bool)
    for i in range(length):
        for j in range(length):
            seen[:, i, j] &= not mask.causal or i >= j
            if mask.segments is not None:
                seen[:, i, j] &= np.asarray(mask.segments[:, i] == mask.segments[:, j])
            if mask.padding is not None:
                seen[:, i, j] &= np.asarray(mask.padding[:, j])
    return seen


def temporaries(attend, length):
    """Bytes that the gradient of attend(query, key, value) needs beside its own arrays."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    gradient = jax.grad(lambda *arrays: attend(*arrays).sum(), argnums=(0, 1, 2))
    compiled = jax.jit(gradient).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes
