"""Holds the regularizers of `config.regularization`, each off at 0: penalties on parameters,
parameters mixed with the initial ones, noise within the model, and losses that wrap the plain one,
each of which makes one `LossFn` (`lm.training.loss`) of another.
"""

from typing import Any

from lm.data import Tokenizer
from lm.finetuning import combine
from lm.model.transformer import Transformer
from lm.training.config import RegularizationConfig
from lm.training.loss import ForwardPass, LossFn, training_loss
from lm.training.policy import REWARDS, policy_gradient, reward_of_tokens
from lm.training.regularization.adversarial import smart
from lm.training.regularization.augment import Augmentation
from lm.training.regularization.divergence import distillation, rdrop
from lm.training.regularization.mixup import mixup
from lm.training.regularization.noise import StochasticDepth, WordDropout
from lm.training.train_state import TrainState


def noises(config: RegularizationConfig) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.finetuning.adapted`)."""
    rates = {StochasticDepth: config.stochastic_depth, WordDropout: config.word_dropout}
    return tuple(noise(rate) for noise, rate in rates.items() if rate)


def augmentation(config: RegularizationConfig, tokenizer: Tokenizer) -> Augmentation:
    """What changes the rows that a tokenizer wrote, before a step reads them."""
    return Augmentation(tokenizer, config.token_deletion, config.token_swap, config.mask_spans)


def regularized_loss(
    config: RegularizationConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    teacher: ForwardPass | None,
    state: TrainState,
) -> LossFn:
    """The training loss of a model, with the regularizers that wrap it.

    Args:
      config: which ones.
      model: of the loss.
      tokenizer: of its rows, for rewards of texts.
      teacher: the pass of a teacher over the same batch; None: there is none.
      state: before the step.
    """
    loss = training_loss(model)
    if config.policy.reward:
        start = combine(state.init_params, state.frozen_params)
        reward = reward_of_tokens(REWARDS[config.policy.reward], tokenizer)
        loss = policy_gradient(config.policy, loss, model, reward, start, tokenizer.end)
    if config.smart:
        loss = smart(loss, model, config.smart, config.adversarial_radius)
    if config.rdrop:
        loss = rdrop(loss, config.rdrop)
    if config.distillation and teacher is not None:
        loss = distillation(loss, teacher, config.distillation, config.distillation_temperature)
    if config.mixup:
        loss = mixup(loss, config.mixup, config.mixup_layer, model.config.stack.num_layers)
    return loss
