"""The policy gradient: a training loss whose gradient raises the expected reward of what the model
writes, and which keeps it near the model that training began with.
"""

from typing import cast

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.model.transformer import Batch, Transformer
from lm.training.loss import ForwardPass, LossFn, Step
from lm.training.policy.config import PolicyConfig
from lm.training.policy.rewards import RewardOfTokens
from lm.training.policy.rollout import roll_out
from lm.training.random_streams import StepStream
from lm.training.train_state import Params


def policy_gradient(
    config: PolicyConfig,
    plain_loss: LossFn,
    model: Transformer,
    rewards: RewardOfTokens,
    init_params: Params,
    end: int,
) -> LossFn:
    """Minus the mean over prompts x and n continuations y_i each, drawn from the model p itself, of

      R_i = r(x, y_i) - b log(p(y_i | x) / p_0(y_i | x)),

    an unbiased estimate of E[r] - b KL(p || p_0), p_0 the model that training began with. Its
    gradient is that of REINFORCE with the mean of a prompt's other continuations as the baseline
    (2402.14740), sum_i (R_i - mean_(j != i) R_j) grad log p(y_i | x) / n, unbiased too: a baseline
    that does not depend on y_i adds nothing to the mean, and neither does the gradient of the
    logarithm within R_i. Each draw is learned from once, so that no ratio has to be clipped as in
    PPO (1707.06347). Dropout is off.

    Args:
      config: n, b, and the lengths; prompts are the first P inputs of the rows, whose weights are
        looked at only for their sum.
      plain_loss: of the same model, by which the pass over the rows is made; its gradient is not
        taken.
      model: p, whose head has full support.
      rewards: r.
      init_params: p_0's parameters, all of them.
      end: the token that ends a continuation.

    Returns:
      A loss that counts as much as the rows' weights, so that the step's loss is minus the mean of
      R; with "reward" and "kl", the means of r and of the logarithm, in `ForwardPass.metrics`.

    Raises:
      UserError: there are several processes, whose hosts have no texts in common.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"config.policy.reward = {config.reward!r} is computed by one process, and there are "
            f"{jax.process_count()}; use one"
        )

    def loss(params: Params, batch: Batch, key: jax.Array, step: Step = None) -> ForwardPass:
        own = jax.lax.stop_gradient(params)
        prompts = batch.inputs[:, : config.prompt_length]
        prompts = jnp.repeat(prompts, config.num_samples, axis=0)
        draws = jax.random.fold_in(key, StepStream.ROLLOUT)
        rollouts = roll_out(model, own, prompts, draws, config.max_new_tokens, end)
        log_p = _log_probs(model, params, rollouts.batch)
        ratio = jax.lax.stop_gradient(log_p) - _log_probs(model, init_params, rollouts.batch)
        reward = rewards(rollouts.tokens, rollouts.written)
        value = (reward - config.kl * ratio).reshape(-1, config.num_samples)
        # R_i minus the mean of the others.
        advantage = (value - jnp.mean(value, axis=1, keepdims=True)) * (
            config.num_samples / (config.num_samples - 1)
        )
        gain = jnp.mean(advantage.reshape(-1) * (log_p - jax.lax.stop_gradient(log_p)))
        count = jnp.sum(batch.weights)
        passed = plain_loss(own, batch, key, step)
        return passed._replace(
            nats=-count * (jnp.mean(value) + gain),
            metrics={"reward": count * jnp.mean(reward), "kl": count * jnp.mean(ratio)},
        )

    return loss


def _log_probs(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    """The log-probability of the targets that count in each row, summed, in nats, [N]."""
    nats = model.apply({"params": params}, batch, method="negative_log_likelihood")
    return -jnp.sum(cast(jax.Array, nats) * batch.weights, axis=1)
