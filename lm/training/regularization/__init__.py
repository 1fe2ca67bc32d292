"""What keeps a model from fitting too closely? The keys of `config.regularization`, each off at 0:
penalties on parameters, parameters mixed with those of the start, noise within the model, and
habits of the loss, each of which makes one `Forward` (`lm.training.regularization.passes`) of
another.
"""

from typing import Any

from lm.config import Config
from lm.model.transformer import Transformer
from lm.training.regularization.adversarial import freelb, smart
from lm.training.regularization.augment import augmentation
from lm.training.regularization.distil import distilled
from lm.training.regularization.mixup import mixup
from lm.training.regularization.noise import StochasticDepth, WordDropout
from lm.training.regularization.passes import Forward, Pass, forward
from lm.training.regularization.rdrop import rdrop
from lm.training.regularization.start import check_acts, mixout, penalty

NOISES = {"stochastic_depth": StochasticDepth, "word_dropout": WordDropout}


def noises(settings: Config) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.finetuning.adapted`)."""
    return tuple(noise(settings[name]) for name, noise in NOISES.items() if settings[name])


def habitual(settings: Config, model: Transformer, said: Pass | None = None) -> Forward:
    """A pass of the model in training, with the habits of the loss around it.

    `said` is the pass of a teacher over the same batch.
    """
    found = forward(model)
    if settings.smart:
        found = smart(found, model, settings.smart, settings.adversarial_radius)
    if settings.rdrop:
        found = rdrop(found, settings.rdrop)
    if settings.distillation and said is not None:
        found = distilled(found, said, settings.distillation, settings.distillation_temperature)
    if settings.mixup:
        last = model.config.stack.num_layers
        layer = last if settings.mixup_layer is None else settings.mixup_layer
        found = mixup(found, settings.mixup, layer, last)
    return found


def penalises(settings: Config) -> bool:
    """Whether the loss has a term of the parameters alone."""
    return any(settings[name] for name in ("l1", "l2", "l2_sp", "ewc"))


def needs_start(settings: Config) -> bool:
    """Whether the parameters are needed with which training began."""
    return any(settings[name] for name in ("l2_sp", "ewc", "mixout"))


__all__ = [
    "NOISES",
    "augmentation",
    "check_acts",
    "forward",
    "freelb",
    "habitual",
    "mixout",
    "needs_start",
    "noises",
    "penalises",
    "penalty",
]
