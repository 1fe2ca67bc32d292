"""Holds the regularizers of `config.regularization`, each off at 0: penalties on parameters,
parameters mixed with the initial ones, noise within the model, and losses that wrap the plain one,
each of which makes one `LossFn` (`lm.training.loss`) of another.
"""

from typing import Any

from lm.data import Tokenizer
from lm.model.transformer import Transformer
from lm.training.config import RegularizationConfig
from lm.training.loss import ForwardPass, LossFn, training_loss
from lm.training.regularization.adversarial import smart
from lm.training.regularization.augment import Augmentation
from lm.training.regularization.divergence import distillation, rdrop
from lm.training.regularization.mixup import mixup
from lm.training.regularization.noise import StochasticDepth, WordDropout


def noises(config: RegularizationConfig) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.finetuning.adapted`)."""
    rates = {StochasticDepth: config.stochastic_depth, WordDropout: config.word_dropout}
    return tuple(noise(rate) for noise, rate in rates.items() if rate)


def augmentation(config: RegularizationConfig, tokenizer: Tokenizer) -> Augmentation:
    """What changes the rows that a tokenizer wrote, before a step reads them."""
    return Augmentation(tokenizer, config.token_deletion, config.token_swap, config.mask_spans)


def regularized_loss(
    config: RegularizationConfig, model: Transformer, teacher: ForwardPass | None = None
) -> LossFn:
    """The training loss of a model, with the regularizers that wrap it.

    `teacher` is the pass of a teacher over the same batch.
    """
    loss = training_loss(model)
    if config.smart:
        loss = smart(loss, model, config.smart, config.adversarial_radius)
    if config.rdrop:
        loss = rdrop(loss, config.rdrop)
    if config.distillation and teacher is not None:
        loss = distillation(loss, teacher, config.distillation, config.distillation_temperature)
    if config.mixup:
        loss = mixup(loss, config.mixup, config.mixup_layer, model.config.stack.num_layers)
    return loss
