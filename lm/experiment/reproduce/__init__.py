"""Published results, measured again by recipes of experiments/ and compared with ours."""

from lm.experiment.reproduce.command import list_expected, reproduce_named

__all__ = ["list_expected", "reproduce_named"]
