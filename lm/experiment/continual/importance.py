"""The Fisher information of earlier tasks, the weights of elastic weight consolidation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from lm.checkpoints.init_params import open_init_run
from lm.checkpoints.initialize import restored_state
from lm.config import Config
from lm.data import sharded_eval_batches
from lm.data.batches import RowSubset
from lm.devices import sharding
from lm.training.mixed_precision import in_float32
from lm.training.program import Program
from lm.training.train_state import Params, Rows, TrainState

ROWS = 1024  # of a task's training rows, the same ones for every run

# (params, rows) -> -log p(targets | inputs) in nats, summed over the rows.
Nats = Callable[[Params, Rows], jax.Array]


def squares(nats: Nats, params: Params, rows: Rows, together: int = 1) -> Params:
    """sum_b (d nats(params, row b) / d params)^2, float32 and a tree like params, of rows [B, ...].

    Its mean over rows is the diagonal of the empirical Fisher information, with the labels of the
    rows. `together` gradients, a divisor of B, are in memory at a time.
    """

    def of_row(row: Rows) -> Params:
        alone = jax.tree.map(lambda x: x[None], row)
        return jax.tree.map(jnp.square, in_float32(jax.grad(nats)(params, alone)))

    def add(total: Params, part: Rows) -> tuple[Params, None]:
        found = jax.vmap(of_row)(part)
        return jax.tree.map(lambda t, f: t + jnp.sum(f, axis=0), total, found), None

    # Part j holds rows j, j + parts, ..., so that every part is sharded over all devices.
    parts = jax.tree.map(lambda x: x.reshape(together, -1, *x.shape[1:]).swapaxes(0, 1), rows)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(add, zeros, parts)[0]


def with_importance(state: TrainState, program: Program, config: Config, corpus: Any) -> TrainState:
    """The state of a run in a chain with the weights F of its penalty, where it has one.

    F = sum_i F_i over the earlier tasks, each at the end of its own run. Their joint penalty is
    centred at the end of the last, which is the recursion of Laplace's approximation
    (Huszar 2018, 1712.03847); Kirkpatrick et al. (2017, 1612.00796) have a penalty for each.

    Raises:
      UserError: the run of an earlier task is gone.
    """
    if program.abstract_state.importance is None:
        return state
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state.importance)
    together = sharding.batch_parts(program.mesh)

    def nats(params: Params, rows: Rows) -> jax.Array:
        weights = program.objective(rows, jax.random.key(0)).weights
        return jnp.sum(program.token_nll(params, rows) * weights)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def add(total: Params, params: Params, rows: Rows, size: jax.Array) -> Params:
        found = squares(nats, params, rows, together)
        return jax.tree.map(lambda t, f: t + f / size, total, found)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.abstract_state.importance)
    total, chain = jax.device_put(zeros, shardings), epath.Path(config.init_from).parent
    for number in range(config.continual.stage - 1):
        donor = open_init_run(str(chain / str(number + 1)))
        params = restored_state(program, donor, config).eval_params
        donor.close()
        rows = RowSubset(corpus.rows("train"), corpus.train_rows(number).tolist())
        size = config.batch_size
        for batch in sharded_eval_batches(program.mesh, rows, batch_size=size, limit=ROWS):
            total = add(total, params, batch, jnp.float32(min(ROWS, len(rows))))
    return dataclasses.replace(state, importance=total)
