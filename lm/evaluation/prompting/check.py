"""Checks config.prompt against the labels of the task and the output head."""

from lm.config import Config, Key
from lm.errors import UserError, one_of
from lm.evaluation.prompting.query_encoder import LENGTH_NORMALIZERS, MLM_SCORING
from lm.evaluation.prompting.template import parse
from lm.output import OUTPUTS
from lm.tasks import predicts_tokens
from lm.tasks.check import check_labels
from lm.tasks.metrics import CLASSIFICATION
from lm.tasks.multiple_choice import READINGS


def check_prompt(config: Config) -> None:
    """Raises UserError for the first invalid setting."""
    Key("prompt.num_shots", at_least=0).check(config)
    if not config.prompt.source:
        return
    prompt, labels = config.prompt, config.task.labels
    one_of("prompt.length_normalization", prompt.length_normalization, LENGTH_NORMALIZERS)
    one_of("prompt.mlm_scoring", prompt.mlm_scoring, MLM_SCORING)
    one_of("task.metric", config.task.metric, ("", *CLASSIFICATION))
    one_of("task.choice_labels", config.task.choice_labels, ("", *READINGS))
    parse(prompt.template)
    check_labels(config)
    words = tuple(prompt.verbalizers)
    if len(set(words)) < len(words) or len(words) == 1 or "" in words:
        raise UserError(
            f"config.prompt.verbalizers = {words} must be two or more texts, all different"
        )
    if words and labels and len(words) != len(labels):
        raise UserError(
            f"config.prompt.verbalizers has {len(words)} texts for the {len(labels)} of "
            "config.task.labels; give one for each, in their order"
        )
    if prompt.balanced and not words:
        raise UserError(
            "config.prompt.balanced = True needs labels, and every question has its own answers; "
            "leave it out, or set config.prompt.verbalizers"
        )
    if not predicts_tokens(config) or OUTPUTS[config.output.head].sequence_level:
        raise UserError(
            f"config.prompt needs a language model, and the head of task {config.task.name} "
            "predicts labels; leave out config.prompt.source or config.task.name"
        )
    if not OUTPUTS[config.output.head].full_support:
        raise UserError(
            f"config.prompt compares answers, and head {config.output.head} may give all of them a "
            "probability of 0; use a model with another head"
        )
