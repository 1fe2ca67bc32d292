"""Are these habits possible? Each failure names the value, the limit and the remedy, before any
work.
"""

from lm.config import Config
from lm.errors import UserError
from lm.output import OUTPUTS


def check_habits(config: Config) -> None:
    """Raises UserError for the first impossible setting of config.regularise."""
    settings = config.regularise
    head = config.output.head
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
