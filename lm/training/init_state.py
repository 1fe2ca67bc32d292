"""Makes the state before the first update, and its shapes, types and shardings."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm.data.objectives import Objective
from lm.devices import sharding
from lm.errors import UserError
from lm.finetuning import partition
from lm.finetuning.lora import check_targets
from lm.model.transformer import Transformer
from lm.training.config import TrainingConfig
from lm.training.mixed_precision import in_float32
from lm.training.regularization.penalties import check_penalized
from lm.training.train_state import Params, TrainState


def build_init_state(
    config: TrainingConfig,
    model: Transformer,
    objective: Objective,
    tx: optax.GradientTransformation,
) -> Callable[[jax.Array], TrainState]:
    """The function of a key that gives a state with new parameters, without a teacher."""
    regularization = config.regularization

    def init_state(key: jax.Array) -> TrainState:
        rows = {name: jnp.zeros(x.shape, x.dtype) for name, x in objective.abstract_rows(1).items()}
        rngs = {"params": key, "softmax": key}
        batch = objective(rows, key)
        params = model.init(rngs, batch, train=False, method="loss")["params"]
        params, frozen_params = partition(params, config.finetuning.frozen_layers)
        ema_params = init_params = importance = None
        if config.optimizer.ema_decay:
            ema_params = jax.tree.map(jnp.copy, in_float32(params))
        if regularization.needs_init_params:
            init_params = jax.tree.map(jnp.copy, params)
        if regularization.ewc:
            importance = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema_params=ema_params,
            finite=jnp.array(True),
            frozen_params=frozen_params,
            init_params=init_params,
            penalty_scale=jnp.ones(()) if regularization.penalty_adaptation else None,
            recent_losses=config.alarm.initial_losses(),
            importance=importance,
        )

    return init_state


def abstract_state(
    config: TrainingConfig,
    init_state: Callable[[jax.Array], TrainState],
    mesh: Mesh,
    teacher: Params = None,
) -> TrainState:
    """The shapes, types and shardings of a state; of its teacher those given.

    Raises:
      UserError: where a method, or a target of one, finds nothing in the model to train.
    """
    state = jax.eval_shape(init_state, jax.random.key(0)).replace(teacher=teacher)
    check_targets(config.finetuning.target_modules or (), state.params, state.frozen_params)
    for name in config.finetuning.methods:
        if not config.finetuning.trains(name, state.params):
            raise UserError(
                f"config.finetuning.method {name!r} finds no parameter of its kind in this model; "
                "leave it out, or give the model such parameters"
            )
    check_penalized(config, state.params)
    of = sharding.tree_shardings
    shardings = of(mesh, state.params, state.saved).replace(
        frozen_params=of(mesh, state.frozen_params, state.frozen_params),
        init_params=of(mesh, state.params, state.init_params),
        teacher=of(mesh, state.teacher, state.teacher),
        importance=of(mesh, state.params, state.importance),
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
