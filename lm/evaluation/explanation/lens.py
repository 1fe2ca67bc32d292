"""The logit lens: what the head would decide if the hidden states of each layer were the last."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.module import InterceptorContext
from flax.traverse_util import flatten_dict

from lm.evaluation.explanation.decision import Decision, Intercepted, Params
from lm.evaluation.explanation.subject import Subject
from lm.model.batch import Batch
from lm.model.embedding import Embedding
from lm.model.layers import Block

_COLLECTION, _NAME = "intermediates", "hidden_states"


def hidden_states(decision: Decision, subject: Subject) -> jax.Array:
    """Hidden states [1 + layers, L, D]: what enters the first layer, and what leaves each."""
    sown = _captured(decision, subject.batch(np.ones((1, len(subject.ids)), bool)))
    first: list[jax.Array] = []
    layers: dict[int, jax.Array] = {}
    found: dict[tuple[str, ...], Any] = dict(flatten_dict(sown))
    for path, (states,) in found.items():
        number = re.search(r"layer_(\d+)", "/".join(path))
        if path[0] == "inputs":
            first.append(states)
        elif number is not None:
            layers[int(number[1])] = states
        else:  # layers that are scanned have an axis of layers before the rows
            layers |= dict(enumerate(states))
    ordered = [*first, *(layers[number] for number in sorted(layers))]
    return jnp.concatenate([each.astype(jnp.float32) for each in ordered])


def logit_lens(decision: Decision, subject: Subject, states: jax.Array) -> np.ndarray:
    """The outputs [1 + layers, V] of the decision by the hidden states of each layer.

    States pass what stands behind the last layer, as the last layer's do: the stack's final norm,
    a transform or pooler, and the head, whatever it is (nostalgebraist, interpreting GPT: the logit
    lens, 2020). The last row is the model's own decision.

    Args:
      states: of `hidden_states`.
    """
    batch = subject.batch(np.ones((len(states), len(subject.ids)), bool))
    return np.asarray(_outputs(decision, batch, states))


def top_tokens(
    decision: Decision, subject: Subject, states: jax.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Of a language model, the likeliest next token after each token by each layer, [1 + layers, L]
    numbers, and its probability.
    """
    batch = subject.batch(np.ones((1, len(subject.ids)), bool))
    found = [_likeliest(decision, batch, each[None]) for each in states]
    tokens, log_probs = (np.concatenate(each) for each in zip(*found, strict=True))
    return tokens, np.exp(log_probs)


@jax.jit
def _outputs(decision: Decision, batch: Batch, states: jax.Array) -> jax.Array:
    return decision.outputs(batch, states=states)


@jax.jit
def _likeliest(decision: Decision, batch: Batch, states: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_probs = decision.next_tokens(batch, states)
    return jnp.argmax(log_probs, axis=-1), jnp.max(log_probs, axis=-1)


@jax.jit
def _captured(decision: Decision, batch: Batch) -> Params:
    """What the embedding and each block have sown."""
    with nn.intercept_methods(_capture):
        # The model's own call: it has no head.
        _, found = decision.model.apply({"params": decision.params}, batch, mutable=[_COLLECTION])
    return found[_COLLECTION]


def _capture(
    call: Intercepted, args: tuple[Any, ...], kwargs: Params, context: InterceptorContext
) -> jax.Array:
    found = call(*args, **kwargs)
    if context.method_name == "__call__" and isinstance(context.module, Block | Embedding):
        context.module.sow(_COLLECTION, _NAME, found)
    return found
