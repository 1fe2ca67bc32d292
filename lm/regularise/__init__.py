"""What keeps a model from fitting too closely? The knobs of `config.regularise`, each off at 0:
penalties on parameters, parameters mixed with those of the start, noise within the model, and
habits of the loss, each of which makes one `Forward` (`lm.regularise.passes`) of another.
"""

from typing import Any

from lm.config import Config
from lm.model import Transformer
from lm.regularise.adversarial import freelb, smart
from lm.regularise.augment import augmentation
from lm.regularise.distil import distilled
from lm.regularise.mixup import mixup
from lm.regularise.noise import StochasticDepth, WordDropout
from lm.regularise.passes import Forward, Pass, forward
from lm.regularise.rdrop import rdrop
from lm.regularise.start import check_acts, mixout, penalty

NOISES = {"stochastic_depth": StochasticDepth, "word_dropout": WordDropout}


def noises(settings: Config) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.tune.tuned`)."""
    return tuple(noise(settings[name]) for name, noise in NOISES.items() if settings[name])


def habitual(settings: Config, model: Transformer, said: Pass | None = None) -> Forward:
    """A pass of the model in training, with the habits of the loss around it.

    `said` is the pass of a teacher over the same batch.
    """
    found = forward(model)
    if settings.smart:
        found = smart(found, model, settings.smart, settings.radius)
    if settings.rdrop:
        found = rdrop(found, settings.rdrop)
    if settings.distil and said is not None:
        found = distilled(found, said, settings.distil, settings.temperature)
    if settings.mixup:
        last = model.layers
        layer = last if settings.mixup_layer is None else settings.mixup_layer
        found = mixup(found, settings.mixup, layer, last)
    return found


def penalises(settings: Config) -> bool:
    """Whether the loss has a term of the parameters alone."""
    return any(settings[name] for name in ("l1", "l2", "l2_start", "ewc"))


def needs_start(settings: Config) -> bool:
    """Whether the parameters are needed with which training began."""
    return any(settings[name] for name in ("l2_start", "ewc", "mixout"))


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
