"""Makes one update: a batch, its loss and gradient, penalties, the optimizer, and metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lm.data import Tokenizer
from lm.data.objectives import Objective
from lm.finetuning import combine
from lm.model.transformer import Batch, Transformer
from lm.training.annealing import anneal
from lm.training.config import RegularizationConfig, TrainingConfig
from lm.training.loss import training_loss
from lm.training.mixed_precision import accumulate, apply_updates, in_float32, update_ema
from lm.training.optimizer import schedule
from lm.training.pruning import pruned_share
from lm.training.random_streams import StepStream
from lm.training.regularization import augmentation, regularized_loss
from lm.training.regularization.adversarial import freelb
from lm.training.regularization.penalties import mixout, penalty_and_grad
from lm.training.train_state import NOT_SAVED, Params, Rows, TrainState

Metrics = dict[str, jax.Array]
Counts = tuple[jax.Array, Metrics]  # sums over tokens: of their weights, and what is logged
NatsAndCounts = tuple[jax.Array, Counts]
LossAndGrad = tuple[NatsAndCounts, Params]  # and d nats


def build_train_step(
    config: TrainingConfig,
    tx: optax.GradientTransformation,
    make_batch: Callable[[Rows, jax.Array], Batch],
    loss_and_grad: Callable[[TrainState, Batch, jax.Array], LossAndGrad],
) -> Callable[[TrainState, Rows, jax.Array], tuple[TrainState, Metrics]]:
    """The function (state, rows, key of the run's steps) -> (state, metrics).

    A state whose loss or gradient is not finite is the one before the step, but for `finite`.
    """
    regularization, ema_decay = config.regularization, config.optimizer.ema_decay
    learning_rate = schedule(config.optimizer.schedule)

    def train_step(state: TrainState, rows: Rows, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        batch = make_batch(rows, key)
        (nats, (weight, sums)), grads = loss_and_grad(state, batch, key)
        weight = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        metrics = {"train/loss": nats / weight}
        metrics |= {f"train/{name}": value / weight for name, value in sums.items()}
        if regularization.has_penalties:
            metrics["train/penalty"], penalty_grads = penalty_and_grad(regularization, state)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        rounding = jax.random.fold_in(key, StepStream.ROUNDING)
        params = apply_updates(state.params, updates, rounding)
        params = anneal(config.model, params, state.step + 1)
        ema_params = None
        if ema_decay:
            ema_params = update_ema(state.ema_params, params, ema_decay)
            ema_params = anneal(config.model, ema_params, state.step + 1)
        finite = state.finite & jnp.isfinite(nats) & jnp.isfinite(grad_norm)
        applied, losses = finite, state.recent_losses
        if config.alarm.on:
            raised, found = config.alarm.judge(losses, metrics["train/loss"], grad_norm)
            losses = config.alarm.remember(losses, state.step, metrics["train/loss"], finite)
            applied = finite & ~raised if config.alarm.policy == "skip" else finite
            metrics |= found

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            # Counts of updates, which schedules follow, go on where one is skipped.
            counts = jnp.issubdtype(new.dtype, jnp.integer)
            return jnp.where(finite if counts else applied, new, old)

        kept = {"penalty_scale": state.penalty_scale, "recent_losses": state.recent_losses}
        new = TrainState(state.step + 1, params, opt_state, ema_params, finite, **kept)
        new = jax.tree.map(choose, new.saved, state.saved)
        unsaved = {name: getattr(state, name) for name in NOT_SAVED}
        new = new.replace(finite=finite, recent_losses=losses, **unsaved)
        metrics |= {
            "train/gradient_norm": grad_norm,
            "train/learning_rate": jnp.asarray(learning_rate(state.step)),
            "tokens": jnp.sum(batch.segments > 0).astype(jnp.float32),
            "finite": finite,
        }
        if config.optimizer.sparsity is not None:
            metrics["train/sparsity"] = pruned_share(new.params)
        return new, metrics

    return train_step


def build_make_batch(
    config: RegularizationConfig, objective: Objective, tokenizer: Tokenizer
) -> Callable[[Rows, jax.Array], Batch]:
    """The function (rows, key of the step) -> the batch that the step learns from."""
    augment = augmentation(config, tokenizer)

    def make_batch(rows: Rows, key: jax.Array) -> Batch:
        batch = objective(rows, jax.random.fold_in(key, StepStream.OBJECTIVE))
        return augment(batch, jax.random.fold_in(key, StepStream.AUGMENTATION))

    return make_batch


def build_loss_and_grad(
    config: TrainingConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    teacher: Transformer | None = None,
) -> Callable[[TrainState, Batch, jax.Array], LossAndGrad]:
    """The function (state, batch, key of the step) -> ((nats, (weights, metrics)), d nats).

    All are sums over tokens, so that the number of accumulation parts does not matter.
    """
    regularization, parts = config.regularization, config.grad_accum_steps

    def whole_batch(state: TrainState, batch: Batch, key: jax.Array) -> LossAndGrad:
        teacher_pass = None
        if teacher is not None:
            teacher_pass = training_loss(teacher, train=False)(state.teacher, batch, key)
        loss_fn = regularized_loss(regularization, model, tokenizer, teacher_pass, state)

        def loss(params: Params, batch: Batch, key: jax.Array, step: jax.Array) -> NatsAndCounts:
            if regularization.mixout:
                draw = jax.random.fold_in(key, StepStream.MIXOUT)
                params = mixout(regularization.mixout, params, state.init_params, draw)
            passed = loss_fn(combine(params, state.frozen_params), batch, key, step)
            return passed.nats, (jnp.sum(batch.weights), dict(passed.metrics))

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if regularization.freelb:
            radius = regularization.adversarial_radius
            value_and_grad = freelb(loss, model, regularization.freelb, radius)
        # In float32: the gradients of all the places that use a parameter are summed in its type.
        return value_and_grad(in_float32(state.params), batch, key, state.step)

    def in_parts(state: TrainState, batch: Batch, key: jax.Array) -> LossAndGrad:
        key = jax.random.fold_in(key, StepStream.ACCUMULATION)
        # Part j holds rows j, j + parts, ...: every device has its share of every part.
        batches = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: LossAndGrad, part: tuple[jax.Array, Batch]) -> tuple[LossAndGrad, None]:
            index, batch = part
            new = whole_batch(state, batch, jax.random.fold_in(key, index))
            return accumulate(total, new), None

        first = jax.tree.map(lambda x: x[0], batches)
        zeros = optax.tree.zeros_like(jax.eval_shape(whole_batch, state, first, key))
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), batches))
        return total

    return whole_batch if parts == 1 else in_parts
