"""What is one update? How the state begins, and the jitted, donated step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm.config import Config
from lm.data import ByteTokenizer, Tokenizer
from lm.data.objectives import Objective, build_objective
from lm.devices import sharding
from lm.errors import UserError
from lm.finetuning import FineTuning, build_finetuning, partition
from lm.finetuning.lora import check_targets
from lm.model.config import model_config
from lm.model.transformer import Batch, Transformer
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.training.annealing import anneal
from lm.training.build_model import build_model
from lm.training.eval_step import Measures, Rows
from lm.training.float32_state import apply_updates, in_float32, moving_average
from lm.training.gradients import gradients
from lm.training.optimizer import optimizer, schedule
from lm.training.pruning import pruned_share
from lm.training.regularization import augmentation, check_acts, needs_start, penalises, penalty
from lm.training.regularization.teacher import teacher_config
from lm.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted functions of one experiment; runs that differ only in the seed share them.

    Attributes:
      model: the Transformer.
      finetuning: the methods by which it is trained.
      mesh: the devices.
      abstract_state: the state's shapes, types and shardings.
      init_state: `init_state(key) -> TrainState`, sharded from the start; without a teacher.
      init_opt_state: `init_opt_state(params)`, the optimizer's state before the first
        update of these.
      train_step: `train_step(state, rows, key) -> (state, metrics)`; donates the state.
      eval_step: `eval_step(params, rows) -> {"nats", "tokens", "bytes", "words"}`, sums over the
        rows, of "words" how often each is a target, [V]; with "accuracy" where the objective counts
        hits, and the sums of `support_metrics` where the head has no full support.
      objective: `objective(rows, key) -> Batch`, of `lm.data.objectives`.
      make_batch: `make_batch(rows, key) -> Batch`, what a step of this key learns from; not
        jitted.
      loss_and_grad: `loss_and_grad(state, batch, key)`, of `lm.training.gradients`; not jitted.
      eval_loss: `eval_loss(params, rows) -> (sum of nats, sum of weights)`, the loss without
        draws or regularizers.
      predict: `predict(params, rows) -> {"row", ...}`, of a task's rows what `Task.predict` asks
        for, whole on every device.
      token_nll: `token_nll(params, rows) -> nats [B, L]` with attention in one piece, not jitted;
        its arithmetic is what `flops_per_token` counts.
      teacher: the program of the model whose predictions this one learns from; None: no one's.

    `params` are all of the model's, `TrainState.all_params` or `TrainState.eval_params`.
    """

    model: Transformer
    finetuning: FineTuning
    mesh: Mesh
    abstract_state: TrainState
    init_state: Any
    init_opt_state: Any
    train_step: Any
    eval_step: Any
    objective: Objective
    make_batch: Any
    loss_and_grad: Any
    eval_loss: Any
    predict: Any
    token_nll: Any
    teacher: "Program | None" = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a task, in the order of their numbers; () where there is no fixed set of labels."""
        return self.objective.labels

    @property
    def abstract_params(self) -> Any:
        """Shapes and types of all parameters, those trained and those left alone."""
        return jax.eval_shape(lambda state: state.all_params, self.abstract_state)


def check_devices(config: Config) -> Mesh:
    """The mesh of a config, once batch and heads are known to divide over it.

    Raises:
      UserError: where they do not.
    """
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(mesh, config.batch_size, config.grad_accum_steps)
    attention = model_config(config).stack.block.attention
    sharding.check_heads(mesh, attention.num_heads, attention.num_kv_heads)
    return mesh


def build_program(
    config: Config,
    vocab_size: int,
    counts: Any = None,
    tokenizer: Tokenizer = ByteTokenizer(),  # noqa: B008 (has no state)
    layout: Layout | None = None,
) -> Program:
    """Model, mesh and jitted functions of a config; nothing is computed yet.

    Args:
      config: every key.
      vocab_size: V.
      counts: of words in the training text, [V], for heads that ask (`needs_counts`); None: such a
        head counts words as ordered by frequency.
      tokenizer: of the rows, for objectives that write special tokens.
      layout: of a task's rows; None: the rows are text.

    Raises:
      UserError: where sizes do not divide over the mesh, the tokenizer lacks a special token, or a
        method trains nothing.
    """
    mesh = check_devices(config)
    model, methods = build_model(config, vocab_size, counts, mesh, layout), build_finetuning(config)
    objective = build_objective(config, tokenizer)
    if layout is not None:
        objective = TaskObjective(tokenizer, layout.length, build_task(config), layout)
    tx, rate = optimizer(config, config.steps), schedule(config, config.steps)
    ema, regularization = config.optimizer.ema_decay, config.regularization
    augment = augmentation(regularization, tokenizer)
    theirs, teacher = teacher_config(config), None
    if theirs is not None:
        teacher = build_program(theirs, vocab_size, counts, tokenizer, layout)
    loss_and_grad = gradients(config, model, None if teacher is None else teacher.model)
    measures = Measures(model, objective, vocab_size)

    def init(key: jax.Array) -> TrainState:
        rows = {name: jnp.zeros(x.shape, x.dtype) for name, x in objective.abstract_rows(1).items()}
        batch = objective(rows, key)
        rngs = {"params": key, "softmax": key}
        params = model.init(rngs, batch, train=False, method="loss")["params"]
        params, frozen = partition(params, methods.frozen_layers)
        average = jax.tree.map(jnp.copy, in_float32(params)) if ema else None
        start = jax.tree.map(jnp.copy, params) if needs_start(regularization) else None
        none = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema_params=average,
            finite=jnp.array(True),
            frozen_params=frozen,
            init_params=start,
            penalty_scale=jnp.ones(()) if regularization.penalty_adaptation else None,
            importance=none if regularization.ewc else None,
        )

    def make_batch(rows: Rows, key: jax.Array) -> Batch:
        batch = objective(rows, jax.random.fold_in(key, 2))
        return augment(batch, jax.random.fold_in(key, 7))

    def step(
        state: TrainState, rows: Rows, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        batch = make_batch(rows, key)
        (total, weight), grads = loss_and_grad(state, batch, key)
        weight = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        extra = {}
        if penalises(regularization):
            value_and_grad = jax.value_and_grad(penalty, argnums=1)
            params, start = in_float32(state.params), in_float32(state.init_params)
            pull = value_and_grad(regularization, params, start, state.importance)
            if regularization.penalty_adaptation:
                pull = jax.tree.map(lambda x: x * state.penalty_scale.astype(x.dtype), pull)
            extra["train/penalty"], more = pull
            grads = jax.tree.map(jnp.add, grads, more)
        norm = optax.tree.norm(grads)
        updates, moments = tx.update(grads, state.opt_state, state.params)
        params = apply_updates(state.params, updates, jax.random.fold_in(key, 10))
        params = anneal(config, params, state.step + 1)
        average = moving_average(state.ema_params, params, ema) if ema else None
        average = anneal(config, average, state.step + 1)
        finite = state.finite & jnp.isfinite(total) & jnp.isfinite(norm)
        new = TrainState(
            state.step + 1, params, moments, average, finite, penalty_scale=state.penalty_scale
        )
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new.saved, state.saved)
        metrics = {
            "train/loss": total / weight,
            "train/gradient_norm": norm,
            "train/learning_rate": jnp.asarray(rate(state.step)),
            "tokens": jnp.sum(batch.segments > 0).astype(jnp.float32),
            "finite": finite,
        }
        if regularization.sparsity:
            extra["train/sparsity"] = pruned_share(new.params)
        kept = {
            name: getattr(state, name)
            for name in ("frozen_params", "init_params", "teacher", "importance")
        }
        return dataclasses.replace(new, finite=finite, **kept), metrics | extra

    abstract = jax.eval_shape(init, jax.random.key(0))
    if teacher is not None:
        abstract = dataclasses.replace(abstract, teacher=teacher.abstract_params)
    _check_trained(methods, abstract)
    check_acts(config, abstract.params)
    shardings = sharding.tree_shardings(mesh, abstract.params, abstract.saved)
    shardings = dataclasses.replace(
        shardings,
        frozen_params=sharding.tree_shardings(mesh, abstract.frozen_params, abstract.frozen_params),
        init_params=sharding.tree_shardings(mesh, abstract.params, abstract.init_params),
        teacher=sharding.tree_shardings(mesh, abstract.teacher, abstract.teacher),
        importance=sharding.tree_shardings(mesh, abstract.params, abstract.importance),
    )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    return Program(
        model=model,
        finetuning=methods,
        mesh=mesh,
        abstract_state=abstract,
        init_state=jax.jit(init, out_shardings=dataclasses.replace(shardings, teacher=None)),
        init_opt_state=jax.jit(tx.init, out_shardings=shardings.opt_state),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        eval_step=jax.jit(measures.eval_step, out_shardings=sharding.whole(mesh)),
        objective=objective,
        make_batch=make_batch,
        loss_and_grad=loss_and_grad,
        eval_loss=jax.jit(measures.eval_loss, out_shardings=sharding.whole(mesh)),
        predict=jax.jit(measures.predict, out_shardings=sharding.whole(mesh)),
        token_nll=measures.token_nll,
        teacher=teacher,
    )


def _check_trained(methods: FineTuning, abstract: TrainState) -> None:
    """Raises UserError where a method, or a target of one, finds nothing in the model to train."""
    check_targets(
        methods.config.finetuning.target_modules or (), abstract.params, abstract.frozen_params
    )
    for name, trained in methods.trained_names(abstract.params).items():
        if not trained:
            raise UserError(
                f"config.finetuning.method {name!r} finds no parameter of its kind in this "
                f"model; leave "
                "it out, or give the model such parameters"
            )
