"""Types the config of a training run, one frozen dataclass for each group of keys; `resolve` makes
them, and computes what follows from several keys.
"""

import dataclasses
from typing import Annotated

from lm.config import Config, Key, keys_of, keys_within, typed
from lm.data import DataConfig
from lm.data.objectives import OBJECTIVES
from lm.finetuning import METHODS, FinetuningConfig, finetuning_config
from lm.model.config import ModelConfig, model_keys
from lm.model.resolve import model_config
from lm.training.alarm import AlarmConfig
from lm.training.optimizer import OptimizerConfig, Steps
from lm.training.policy.config import PolicyConfig
from lm.training.pruning import Sparsity


@dataclasses.dataclass(frozen=True)
class RegularizationConfig:
    """Penalties, noise, terms of the loss and augmentation, each off at 0."""

    l1: Annotated[float, Key("regularization.l1", at_least=0)]
    l2: Annotated[float, Key("regularization.l2", at_least=0)]
    l2_sp: Annotated[float, Key("regularization.l2_sp", at_least=0)]
    ewc: Annotated[float, Key("regularization.ewc", at_least=0)]
    penalty_adaptation: Annotated[float, Key("regularization.penalty_adaptation", at_least=0)]
    target_gap: Annotated[float, Key("regularization.target_gap", at_least=0)]
    mixout: Annotated[float, Key("regularization.mixout", at_least=0, below=1)]
    stochastic_depth: Annotated[float, Key("regularization.stochastic_depth", at_least=0, below=1)]
    word_dropout: Annotated[float, Key("regularization.word_dropout", at_least=0, below=1)]
    rdrop: Annotated[float, Key("regularization.rdrop", at_least=0)]
    smart: Annotated[float, Key("regularization.smart", at_least=0)]
    freelb: Annotated[int, Key("regularization.freelb", at_least=0)]
    adversarial_radius: Annotated[float, Key("regularization.adversarial_radius", above=0)]
    mixup: Annotated[float, Key("regularization.mixup", at_least=0)]
    mixup_layer: Annotated[int, Key("regularization.mixup_layer", at_least=0)]
    token_deletion: Annotated[float, Key("regularization.token_deletion", at_least=0, below=1)]
    token_swap: Annotated[float, Key("regularization.token_swap", at_least=0, below=1)]
    mask_spans: Annotated[float, Key("regularization.mask_spans", at_least=0, below=1)]
    distillation: Annotated[float, Key("regularization.distillation", at_least=0, at_most=1)]
    distillation_temperature: Annotated[
        float, Key("regularization.distillation_temperature", above=0)
    ]
    policy: PolicyConfig

    @property
    def has_penalties(self) -> bool:
        """Whether the loss has a term of the parameters alone."""
        return any((self.l1, self.l2, self.l2_sp, self.ewc))

    @property
    def needs_init_params(self) -> bool:
        """Whether the parameters are needed with which training began."""
        return any((self.l2_sp, self.ewc, self.mixout, self.policy.reward))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluations on held-out rows while a model is trained."""

    every: Annotated[int, Key("evaluation.every", at_least=0)]
    num_examples: Annotated[int, Key("evaluation.num_examples", at_least=0)]
    num_bytes: Annotated[int | None, Key("evaluation.num_bytes", at_least=1)]
    patience: Annotated[int, Key("evaluation.patience", at_least=0)]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and which checkpoints are kept."""

    every: Annotated[int, Key("checkpoint.every", at_least=0)]
    max_to_keep: Annotated[int, Key("checkpoint.max_to_keep", at_least=1)]
    keep_every: Annotated[int, Key("checkpoint.keep_every", at_least=0)]
    keep_best: Annotated[int, Key("checkpoint.keep_best", at_least=0)]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Lines of metrics.jsonl, what has them besides, and which steps are traced."""

    every: Annotated[int, Key("log.every", at_least=1)]
    trackers: Annotated[tuple[str, ...], Key("log.trackers")]
    project: Annotated[str, Key("log.project")]
    profile_start: Annotated[int, Key("log.profile_start", at_least=2)]
    profile_steps: Annotated[int, Key("log.profile_steps", at_least=0)]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a config says of a model, its text, and its training; not of a task, or of devices."""

    seed: Annotated[int, Key("seed", at_least=0, below=2**31)]
    steps: Steps
    epochs: Annotated[float | None, Key("epochs", above=0)]
    batch_size: Annotated[int, Key("batch_size", at_least=1)]
    grad_accum_steps: Annotated[int, Key("grad_accum_steps", at_least=1)]
    objective: Annotated[str, Key("objective", one_of=OBJECTIVES)]
    data: DataConfig
    model: ModelConfig
    finetuning: FinetuningConfig
    optimizer: OptimizerConfig
    regularization: RegularizationConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    alarm: AlarmConfig
    log: LogConfig


def resolve(config: Config) -> TrainingConfig:
    """The typed config, with what follows from several keys.

    Raises:
      UserError: the config lacks a key.
    """
    given, model = config.regularization, model_config(config)
    start = min(round(given.pruning_start * config.steps), config.steps - 1)
    end = max(round(given.pruning_end * config.steps), start + 1)
    sparsity = typed(Sparsity, config, start=start, end=end) if given.sparsity else None
    layer = model.stack.num_layers if given.mixup_layer is None else given.mixup_layer
    return typed(
        TrainingConfig,
        config,
        model=model,
        finetuning=finetuning_config(config),
        optimizer=typed(OptimizerConfig, config, sparsity=sparsity),
        regularization=typed(RegularizationConfig, config, mixup_layer=layer),
    )


def config_keys() -> list[Key]:
    """Every key that a typed config holds, with its bounds, also the options of objectives and of
    methods of fine-tuning.
    """
    adapters = (method.adapter for method in METHODS.values() if method.adapter is not None)
    options = (keys_of(kind).values() for kind in (*OBJECTIVES.values(), *adapters))
    return [*keys_within(TrainingConfig), *model_keys(), *(key for own in options for key in own)]
