"""Are these habits possible? Each failure names the value, the limit and the remedy, before any
work.
"""

from lm.check_names import one_of
from lm.config import Config
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.prune import SCORES
from lm.tune import method_names


def check_habits(config: Config) -> None:
    """Raises UserError for the first impossible setting of config.regularise."""
    _check_passes(config)
    _check_pruning(config)


def _check_passes(config: Config) -> None:
    settings, head = config.regularise, config.output.head
    for name in ("rdrop", "smart"):
        if settings[name] and not OUTPUTS[head].full_support:
            raise UserError(
                f"config.regularise.{name} = {settings[name]} compares log-probabilities, which "
                f"head {head} has none of outside its support; use another head, or 0"
            )
    if settings.smart and settings.freelb:
        raise UserError(
            "config.regularise.smart and freelb both move the words' vectors; set one of them to 0"
        )
    random = (config.model.dropout, settings.stochastic_depth, settings.word_dropout)
    if settings.rdrop and not any(random):
        raise UserError(
            f"config.regularise.rdrop = {settings.rdrop} compares two draws of dropout, and "
            "config.model.dropout = 0.0 draws none; set it, or stochastic_depth or word_dropout"
        )


def _check_pruning(config: Config) -> None:
    settings, method = config.regularise, config.tune.method
    one_of("regularise.prune_by", settings.prune_by, SCORES)
    if not settings.prune_from < settings.prune_until <= 1:
        raise UserError(
            f"config.regularise.prune_until = {settings.prune_until}: must be above prune_from = "
            f"{settings.prune_from} and at most 1"
        )
    if settings.prune and not {"full", "layers"} & set(method_names(config)):
        raise UserError(
            f"config.regularise.prune = {settings.prune} prunes kernels, of which "
            f"config.tune.method = {method!r} trains none; use full or layers"
        )
    if settings.prune and config.optimizer.ema:
        raise UserError(
            f"config.optimizer.ema = {config.optimizer.ema} averages parameters, and an average of "
            "what is pruned is not 0; set it to 0, or regularise.prune"
        )
