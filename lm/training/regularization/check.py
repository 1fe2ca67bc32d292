"""Checks config.regularization before any work; each failure names the value, the limit and the
remedy.
"""

from lm.config import Config
from lm.errors import UserError
from lm.finetuning import method_names
from lm.model.resolve import scans_layers
from lm.output import OUTPUTS
from lm.tasks import build_task

WHOLE = ("classification", "regression")  # tasks with one target for a row


def check_regularization(config: Config) -> None:
    """Raises UserError for the first impossible setting of config.regularization."""
    _check_adaptation(config)
    _check_passes(config)
    _check_mixup(config)
    _check_augmentation(config)
    _check_distillation(config)
    _check_pruning(config)
    _check_policy(config)


def _check_adaptation(config: Config) -> None:
    settings = config.regularization
    what = f"config.regularization.penalty_adaptation = {settings.penalty_adaptation}"
    if settings.penalty_adaptation and not (settings.l1 or settings.l2 or settings.l2_sp):
        raise UserError(f"{what} multiplies penalties, and all are 0; set l1, l2 or l2_sp")
    if settings.penalty_adaptation and not config.evaluation.every:
        raise UserError(
            f"{what} follows evaluations, of which config.evaluation.every = 0 makes none before "
            "the end; set it"
        )


def _check_passes(config: Config) -> None:
    settings, head = config.regularization, config.output.head
    for name in ("rdrop", "smart", "distillation"):
        if settings[name] and not OUTPUTS[head].full_support:
            raise UserError(
                f"config.regularization.{name} = {settings[name]} compares log-probabilities, "
                f"which head {head} has none of outside its support; use another head, or 0"
            )
    if settings.smart and settings.freelb:
        raise UserError(
            "config.regularization.smart and freelb both move the token embeddings; set one of "
            "them to 0"
        )
    random = (config.model.dropout, settings.stochastic_depth, settings.word_dropout)
    if settings.rdrop and not any(random):
        raise UserError(
            f"config.regularization.rdrop = {settings.rdrop} compares two draws of dropout, and "
            "config.model.dropout = 0.0 draws none; set it, or stochastic_depth or word_dropout"
        )


def _check_mixup(config: Config) -> None:
    settings, model, layer = config.regularization, config.model, config.regularization.mixup_layer
    if not settings.mixup:
        return
    what = f"config.regularization.mixup = {settings.mixup}"
    if config.task.name not in WHOLE:
        raise UserError(
            f"{what} mixes rows that have one target each; set config.task.name to one of "
            f"{' or '.join(WHOLE)}"
        )
    if settings.distillation:
        raise UserError(
            f"{what} makes rows that no teacher has seen; set distillation or mixup to 0"
        )
    if layer is not None and layer > model.num_layers:
        raise UserError(
            f"config.regularization.mixup_layer = {layer} is more than config.model.num_layers = "
            f"{model.num_layers}; use at most as many"
        )
    if (
        layer
        and layer < model.num_layers
        and (scans_layers(model) or model.share_layers or model.remat)
    ):
        raise UserError(
            f"config.regularization.mixup_layer = {layer} is between blocks that are scanned or "
            f"recomputed; use 0 or {model.num_layers}, or config.model.scan=False and remat=False"
        )


def _check_augmentation(config: Config) -> None:
    settings, task = config.regularization, config.task.name
    for name in ("token_deletion", "token_swap"):
        if settings[name] and task not in WHOLE:
            raise UserError(
                f"config.regularization.{name} = {settings[name]} moves tokens, and "
                f"{f'task {task}' if task else 'a language model'} has targets at their positions; "
                f"it suits {' and '.join(WHOLE)}"
            )
    if settings.mask_spans and not task and config.objective in ("masked", "span"):
        raise UserError(
            f"config.regularization.mask_spans = {settings.mask_spans}: objective "
            f"{config.objective} masks tokens already; set config.corruption.mask_rate"
        )


def _check_distillation(config: Config) -> None:
    settings = config.regularization
    if bool(settings.teacher) != (settings.distillation > 0):
        raise UserError(
            f"config.regularization.teacher = {settings.teacher!r} and distillation = "
            f"{settings.distillation} go together: the folder of a run, and its share in the loss"
        )
    labels = config.task.name and not build_task(config).predicts_tokens
    if labels and settings.teacher.startswith("hf:"):
        raise UserError(
            f"config.regularization.teacher = {settings.teacher!r} has no head for task "
            f"{config.task.name}; give the folder of a run that was trained from it"
        )


def _check_policy(config: Config) -> None:
    policy, head = config.policy, config.output.head
    if not policy.reward:
        return
    what = f"config.policy.reward = {policy.reward!r}"
    if config.task.name or config.objective != "causal":
        given = f"task {config.task.name}" if config.task.name else f"objective {config.objective}"
        raise UserError(f"{what} is of what a decoder writes, not of {given}; use objective causal")
    if not OUTPUTS[head].full_support:
        raise UserError(
            f"{what} compares log-probabilities, which head {head} has none of outside its "
            "support; use another head"
        )
    for name in ("smart", "rdrop", "freelb", "distillation"):
        if config.regularization[name]:
            raise UserError(
                f"{what} is learned from alone, and config.regularization.{name} = "
                f"{config.regularization[name]} is a term of the rows' loss; set it to 0"
            )
    if policy.prompt_length > config.data.seq_len:
        raise UserError(
            f"config.policy.prompt_length = {policy.prompt_length} is longer than "
            f"config.data.seq_len = {config.data.seq_len}; use at most as much"
        )
    if (longest := policy.prompt_length + policy.max_new_tokens) > config.model.max_seq_len:
        raise UserError(
            f"config.policy.prompt_length and max_new_tokens make {longest} tokens, more than "
            f"config.model.max_seq_len = {config.model.max_seq_len}; use fewer"
        )


def _check_pruning(config: Config) -> None:
    settings, method = config.regularization, config.finetuning.method
    if not settings.pruning_start < settings.pruning_end:
        raise UserError(
            f"config.regularization.pruning_end = {settings.pruning_end}: must be above "
            f"pruning_start = {settings.pruning_start}"
        )
    if settings.sparsity and not {"full", "layers"} & set(method_names(config)):
        raise UserError(
            f"config.regularization.sparsity = {settings.sparsity} prunes kernels, of which "
            f"config.finetuning.method = {method!r} trains none; use full or layers"
        )
    if settings.sparsity and config.optimizer.ema_decay:
        raise UserError(
            f"config.optimizer.ema_decay = {config.optimizer.ema_decay} averages parameters, and "
            "an average of what is pruned is not 0; set it to 0, or regularization.sparsity"
        )
    if settings.sparsity and config.evaluation.patience:
        raise UserError(
            f"config.evaluation.patience = {config.evaluation.patience} goes back to the best "
            "evaluation, which may be one before regularization.sparsity was reached; set one of "
            "them to 0"
        )
