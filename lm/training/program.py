"""Builds the program of an experiment: its model, its mesh, and its jitted functions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Wrapped

from lm.config import Config
from lm.data import ByteTokenizer, Tokenizer
from lm.data.objectives import Objective, build_objective
from lm.devices import sharding
from lm.model.transformer import Batch, Transformer
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.training.build_model import build_model, check_devices
from lm.training.config import TrainingConfig, resolve
from lm.training.eval_step import EvalFunctions
from lm.training.init_state import abstract_state, build_init_state
from lm.training.optimizer import optimizer
from lm.training.train_state import Params, Rows, TrainState
from lm.training.train_step import (
    LossAndGrad,
    build_loss_and_grad,
    build_make_batch,
    build_train_step,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted functions of one experiment; runs that differ only in the seed share them.

    Attributes:
      config: of its training; of a program that runs share, with the seed 0.
      model: the Transformer.
      mesh: the devices.
      abstract_state: the state's shapes, types and shardings.
      init_state: `init_state(key) -> TrainState`, sharded from the start; without a teacher.
      init_opt_state: `init_opt_state(params)`, the optimizer's state before the first
        update of these.
      train_step: `train_step(state, rows, key) -> (state, metrics)`; donates the state.
      eval_step: `eval_step(params, rows) -> {"nats", "tokens", "bytes", "words"}`, sums over the
        rows, of "words" how often each is a target, [V]; with "accuracy" where the objective counts
        hits, and the sums of `support_metrics` where the head has no full support. Where targets
        are the whole text, also "token_nats" of each, [B, L].
      objective: `objective(rows, key) -> Batch`, of `lm.data.objectives`.
      make_batch: `make_batch(rows, key) -> Batch`, what a step of this key learns from; not
        jitted.
      loss_and_grad: `loss_and_grad(state, batch, key)`, of `build_loss_and_grad`; not jitted.
      eval_loss: `eval_loss(params, rows) -> (sum of nats, sum of weights)`, the loss without
        draws or regularizers.
      predict: `predict(params, rows) -> {"row", ...}`, of a task's rows what `Task.predict` asks
        for, whole on every device.
      token_nll: `token_nll(params, rows) -> nats [B, L]` with attention in one piece, not jitted;
        its arithmetic is what `flops_per_token` counts.
      teacher: the program of the model that this one is distilled from; None: there is none.

    `params` are all of the model's, `TrainState.all_params` or `TrainState.eval_params`.
    """

    config: TrainingConfig
    model: Transformer
    mesh: Mesh
    abstract_state: TrainState
    init_state: Wrapped
    init_opt_state: Wrapped
    train_step: Wrapped
    eval_step: Wrapped
    objective: Objective
    make_batch: Callable[[Rows, jax.Array], Batch]
    loss_and_grad: Callable[[TrainState, Batch, jax.Array], LossAndGrad]
    eval_loss: Wrapped
    predict: Wrapped
    token_nll: Callable[[Params, Rows], jax.Array]
    teacher: "Program | None" = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a task, in the order of their numbers; () where there is no fixed set of labels."""
        return self.objective.labels

    @property
    def abstract_params(self) -> Params:
        """Shapes and types of all parameters, those trained and those left alone."""
        return jax.eval_shape(lambda state: state.all_params, self.abstract_state)


def build_program(
    config: Config,
    vocab_size: int,
    counts: tuple[int, ...] | None = None,
    tokenizer: Tokenizer = ByteTokenizer(),  # noqa: B008 (has no state)
    layout: Layout | None = None,
    teacher: Config | None = None,
    devices: Sequence[Any] | None = None,
) -> Program:
    """Model, mesh and jitted functions of a config; nothing is computed yet.

    Args:
      config: every key.
      vocab_size: V.
      counts: of words in the training text, [V], for heads that ask (`needs_counts`); None: such a
        head counts words as ordered by frequency.
      tokenizer: of the rows, for objectives that write special tokens.
      layout: of a task's rows; None: the rows are text.
      teacher: the config of the model to distil; None: there is none.
      devices: of the mesh, which may be only described; None: all that there are.

    Raises:
      UserError: where sizes do not divide over the mesh, the tokenizer lacks a special token, or a
        method trains nothing.
    """
    mesh, settings = check_devices(config, devices), resolve(config)
    model = build_model(config, vocab_size, counts, mesh, layout)
    objective = build_objective(config, tokenizer)
    if layout is not None:
        objective = TaskObjective(tokenizer, layout.length, build_task(config), layout)
    tx = optimizer(settings.optimizer)
    distilled = None
    if teacher:
        distilled = build_program(teacher, vocab_size, counts, tokenizer, layout, devices=devices)
    make_batch = build_make_batch(settings.regularization, objective, tokenizer)
    loss_and_grad = build_loss_and_grad(settings, model, tokenizer, distilled and distilled.model)
    train_step = build_train_step(settings, tx, make_batch, loss_and_grad)
    evaluation = EvalFunctions(model, objective, vocab_size)
    init_state = build_init_state(settings, model, objective, tx)
    abstract = abstract_state(settings, init_state, mesh, distilled and distilled.abstract_params)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    whole = sharding.whole(mesh)
    return Program(
        config=settings,
        model=model,
        mesh=mesh,
        abstract_state=abstract,
        init_state=jax.jit(init_state, out_shardings=shardings.replace(teacher=None)),
        init_opt_state=jax.jit(tx.init, out_shardings=shardings.opt_state),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
        eval_step=jax.jit(evaluation.eval_step, out_shardings=whole),
        objective=objective,
        make_batch=make_batch,
        loss_and_grad=loss_and_grad,
        eval_loss=jax.jit(evaluation.eval_loss, out_shardings=whole),
        predict=jax.jit(evaluation.predict, out_shardings=whole),
        token_nll=evaluation.token_nll,
        teacher=distilled,
    )


def with_model(program: Program, model: Transformer) -> Program:
    """The program, evaluating another model of the same parameters."""
    evaluation = EvalFunctions(model, program.objective, model.vocab_size)
    whole = sharding.whole(program.mesh)
    return dataclasses.replace(
        program,
        model=model,
        eval_step=jax.jit(evaluation.eval_step, out_shardings=whole),
        eval_loss=jax.jit(evaluation.eval_loss, out_shardings=whole),
        predict=jax.jit(evaluation.predict, out_shardings=whole),
        token_nll=evaluation.token_nll,
    )
