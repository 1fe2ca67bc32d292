"""What is the gradient of an update? That of the loss with its habits, summed over the tokens of a
batch, at once or part by part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import Config
from lm.finetuning import combine
from lm.model.batch import Batch
from lm.model.transformer import Transformer
from lm.training.float32_state import in_float32, plus, wide_zeros
from lm.training.regularization import forward, freelb, habitual, mixout
from lm.training.train_state import TrainState

# The sum of nats, the sum of weights; and the gradient of the first.
Found = tuple[tuple[jax.Array, jax.Array], Any]


def gradients(
    config: Config, model: Transformer, teacher: Transformer | None
) -> Callable[[TrainState, Batch, jax.Array], Found]:
    """The function (state, batch, key) -> ((nats, weights), gradient of nats).

    All are sums over tokens, so that in how many parts they were taken does not matter.
    """
    regularization, parts = config.regularization, config.grad_accum_steps

    def at_once(state: TrainState, batch: Batch, key: jax.Array) -> Found:
        said = None
        if teacher is not None:
            said = forward(teacher, train=False)(state.teacher, batch, key)
        passed = habitual(regularization, model, said)

        def loss(params: Any, batch: Batch, key: jax.Array, step: jax.Array):
            if regularization.mixout:
                params = mixout(
                    regularization.mixout, params, state.init_params, jax.random.fold_in(key, 8)
                )
            found = passed(combine(params, state.frozen_params), batch, key, step)
            return found.nats, jnp.sum(batch.weights)

        learn = jax.value_and_grad(loss, has_aux=True)
        if regularization.freelb:
            learn = freelb(loss, model, regularization.freelb, regularization.adversarial_radius)
        # In float32, so that what several places of the model ask of one parameter is summed in it.
        return learn(in_float32(state.params), batch, key, state.step)

    def in_parts(state: TrainState, batch: Batch, key: jax.Array) -> Found:
        own = jax.random.fold_in(key, 9)
        # Part j holds rows j, j + parts, ...: every device has its share of every part.
        batches = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Found, part: Any) -> tuple[Found, None]:
            index, batch = part
            new = at_once(state, batch, jax.random.fold_in(own, index))
            return plus(total, new), None

        start = ((jnp.zeros(()), jnp.zeros(())), wide_zeros(state.params))
        total, _ = jax.lax.scan(add, start, (jnp.arange(parts), batches))
        return total

    return at_once if parts == 1 else in_parts
