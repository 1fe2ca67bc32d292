"""Holds the regularizers of `config.regularization`, each off at 0: penalties on parameters,
parameters mixed with the initial ones, noise within the model, and losses that wrap the plain one,
each of which makes one `LossFn` (`lm.training.loss`) of another.
"""

from typing import Any

from lm.config import Config
from lm.data import Tokenizer
from lm.model.transformer import Transformer
from lm.training.loss import ForwardPass, LossFn, training_loss
from lm.training.regularization.adversarial import smart
from lm.training.regularization.augment import Augmentation
from lm.training.regularization.divergence import distillation, rdrop
from lm.training.regularization.mixup import mixup
from lm.training.regularization.noise import StochasticDepth, WordDropout

NOISES = {"stochastic_depth": StochasticDepth, "word_dropout": WordDropout}


def noises(settings: Config) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.finetuning.adapted`)."""
    return tuple(noise(settings[name]) for name, noise in NOISES.items() if settings[name])


def augmentation(settings: Config, tokenizer: Tokenizer) -> Augmentation:
    """What `config.regularization` does to the rows that a tokenizer wrote."""
    return Augmentation(
        tokenizer, settings.token_deletion, settings.token_swap, settings.mask_spans
    )


def regularized_loss(
    settings: Config, model: Transformer, teacher: ForwardPass | None = None
) -> LossFn:
    """The training loss of a model, with the regularizers that wrap it.

    `teacher` is the pass of a teacher over the same batch.
    """
    loss = training_loss(model)
    if settings.smart:
        loss = smart(loss, model, settings.smart, settings.adversarial_radius)
    if settings.rdrop:
        loss = rdrop(loss, settings.rdrop)
    if settings.distillation and teacher is not None:
        loss = distillation(loss, teacher, settings.distillation, settings.distillation_temperature)
    if settings.mixup:
        last = model.config.stack.num_layers
        layer = last if settings.mixup_layer is None else settings.mixup_layer
        loss = mixup(loss, settings.mixup, layer, last)
    return loss


def has_penalties(settings: Config) -> bool:
    """Whether the loss has a term of the parameters alone."""
    return any(settings[name] for name in ("l1", "l2", "l2_sp", "ewc"))


def needs_init_params(settings: Config) -> bool:
    """Whether the parameters are needed with which training began."""
    return any(settings[name] for name in ("l2_sp", "ewc", "mixout"))
