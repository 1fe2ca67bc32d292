"""What keeps a model from fitting too closely? Penalties on parameters, parameters mixed with those
of the start, and noise within the model; the knobs of `config.regularise`, each off at 0.
"""

from typing import Any

from lm.config import Config
from lm.regularise.noise import StochasticDepth, WordDropout
from lm.regularise.start import mixout, penalty

NOISES = {"stochastic_depth": StochasticDepth, "word_dropout": WordDropout}


def noises(settings: Config) -> tuple[Any, ...]:
    """What intercepts the model's modules in training (`lm.tune.tuned`)."""
    return tuple(noise(settings[name]) for name, noise in NOISES.items() if settings[name])


def penalises(settings: Config) -> bool:
    """Whether the loss has a term of the parameters alone."""
    return any(settings[name] for name in ("l1", "l2", "l2_start"))


def needs_start(settings: Config) -> bool:
    """Whether the parameters are needed with which training began."""
    return any(settings[name] for name in ("l2_start", "mixout"))


__all__ = ["NOISES", "mixout", "needs_start", "noises", "penalises", "penalty"]
