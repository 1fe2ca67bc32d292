"""Are these habits possible? Each failure names the value, the limit and the remedy, before any
work.
"""

from lm.checkpoints.hf import is_checkpoint
from lm.config import Config
from lm.errors import UserError, one_of
from lm.finetuning import method_names
from lm.output import OUTPUTS
from lm.tasks import build_task
from lm.training.pruning import SCORES

WHOLE = ("classification", "regression")  # tasks with one target for a row


def check_habits(config: Config) -> None:
    """Raises UserError for the first impossible setting of config.regularise."""
    _check_adaptation(config)
    _check_passes(config)
    _check_mixup(config)
    _check_augmentation(config)
    _check_distillation(config)
    _check_pruning(config)


def _check_adaptation(config: Config) -> None:
    settings = config.regularise
    if settings.adapt and not (settings.l1 or settings.l2 or settings.l2_start):
        raise UserError(
            f"config.regularise.adapt = {settings.adapt} multiplies penalties, and all are 0; set "
            "l1, l2 or l2_start"
        )
    if settings.adapt and not config.evaluation.every:
        raise UserError(
            f"config.regularise.adapt = {settings.adapt} follows evaluations, of which "
            "config.evaluation.every = 0 makes none before the end; set it"
        )


def _check_passes(config: Config) -> None:
    settings, head = config.regularise, config.output.head
    for name in ("rdrop", "smart", "distil"):
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


def _check_mixup(config: Config) -> None:
    settings, model, layer = config.regularise, config.model, config.regularise.mixup_layer
    if not settings.mixup:
        return
    knob = f"config.regularise.mixup = {settings.mixup}"
    if config.task.name not in WHOLE:
        raise UserError(
            f"{knob} mixes rows that have one target each; set config.task.name to one of "
            f"{' or '.join(WHOLE)}"
        )
    if settings.distil:
        raise UserError(f"{knob} makes rows that no teacher has seen; set distil or mixup to 0")
    if layer is not None and layer > model.layers:
        raise UserError(
            f"config.regularise.mixup_layer = {layer} is more than config.model.layers = "
            f"{model.layers}; use at most as many"
        )
    if layer and layer < model.layers and (model.scan or model.share_layers or model.remat):
        raise UserError(
            f"config.regularise.mixup_layer = {layer} is between blocks that are scanned or "
            f"recomputed; use 0 or {model.layers}, or config.model.scan=False and remat=False"
        )


def _check_augmentation(config: Config) -> None:
    settings, task = config.regularise, config.task.name
    for name in ("delete", "swap"):
        if settings[name] and task not in WHOLE:
            raise UserError(
                f"config.regularise.{name} = {settings[name]} moves words, and "
                f"{f'task {task}' if task else 'a language model'} has targets at their places; it "
                f"suits {' and '.join(WHOLE)}"
            )
    if settings.hide_spans and not task and config.objective in ("masked", "span"):
        raise UserError(
            f"config.regularise.hide_spans = {settings.hide_spans}: objective {config.objective} "
            "hides words already; set config.corruption.rate"
        )


def _check_distillation(config: Config) -> None:
    settings = config.regularise
    if not 0 <= settings.distil <= 1:
        raise UserError(f"config.regularise.distil = {settings.distil}: must be from 0 to 1")
    if bool(settings.teacher) != (settings.distil > 0):
        raise UserError(
            f"config.regularise.teacher = {settings.teacher!r} and distil = {settings.distil} go "
            "together: the folder of a run, and its share in the loss"
        )
    labels = config.task.name and not build_task(config).words
    if labels and is_checkpoint(settings.teacher):
        raise UserError(
            f"config.regularise.teacher = {settings.teacher!r} has no head for task "
            f"{config.task.name}; give the folder of a run that was trained from it"
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
    if settings.prune and config.evaluation.patience:
        raise UserError(
            f"config.evaluation.patience = {config.evaluation.patience} goes back to the best "
            "evaluation, which may be one before regularise.prune was reached; set one of them to 0"
        )
