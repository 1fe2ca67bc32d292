"""Checks the config of an experiment before any work: what training checks, config.prompt, and
config.continual with config.regularization.ewc, which needs earlier tasks.
"""

from lm.config import Config, Key, keys
from lm.errors import UserError
from lm.evaluation.prompting.check import check_prompt
from lm.tasks import build_task
from lm.training import validate

_KEYS = (
    Key("continual.replay_fraction", at_least=0, below=1),
    *keys("continual", "memory_size stage", at_least=0),
)

_OF_EARLIER_TASKS = ("continual.replay_fraction", "continual.memory_size", "regularization.ewc")


def check(config: Config) -> None:
    """Raises UserError for the first impossible setting."""
    validate.check(config)
    for feature in FEATURE_CHECKS:
        feature(config)


def check_continual(config: Config) -> None:
    """Raises UserError for the first invalid setting of config.continual or regularization.ewc."""
    for key in _KEYS:
        key.check(config)
    if config.continual.sources:
        _check_tasks(config)
        _check_place(config)
    elif keys := _given(config, *_OF_EARLIER_TASKS, "continual.joint", "continual.stage"):
        raise UserError(f"{keys[0]} needs several tasks; name them in config.continual.sources")


def _check_tasks(config: Config) -> None:
    """There must be several tasks, with separate rows, and all parameters must be saved."""
    sources = tuple(config.continual.sources)
    key, task = f"config.continual.sources = {sources}", config.task.name
    if len(set(sources)) < max(len(sources), 2):
        remedy = "give two tasks or more, each once; a single one is config.data.source"
        raise UserError(f"{key}: {remedy}")
    if not task:
        raise UserError(f"{key} are labelled examples; set config.task.name")
    if build_task(config).shares_rows:
        raise UserError(f"{key}: task {task} packs examples into shared rows; use another task")
    if config.task.validation_source:
        raise UserError(
            f"config.task.validation_source = {config.task.validation_source!r} is held out of one "
            "task; of several, each holds out the share config.data.validation_fraction: leave it "
            "out"
        )
    if config.finetuning.method != "full":
        raise UserError(
            f"config.finetuning.method = {config.finetuning.method!r}: a run of a chain starts "
            "from all parameters of the one before, and this saves a part of them; use full"
        )
    if adaptation := config.regularization.penalty_adaptation:
        raise UserError(
            f"config.regularization.penalty_adaptation = {adaptation} follows the gap of one task; "
            "set it to 0 in a chain"
        )


def _check_place(config: Config) -> None:
    """Replay and ewc must have earlier tasks, and a run its stage in the chain."""
    chain, held = config.continual, _given(config, *_OF_EARLIER_TASKS)
    last = 1 if chain.joint else len(chain.sources)
    if chain.memory_size and not chain.replay_fraction:
        raise UserError(
            f"config.continual.memory_size = {chain.memory_size} rows are kept to be replayed, and "
            "config.continual.replay_fraction = 0.0 replays none; set it, or memory_size to 0"
        )
    if held and (chain.joint or chain.stage == 1):
        reason = "joint = True has none" if chain.joint else "stage = 1 is the first"
        raise UserError(f"{held[0]} needs earlier tasks, and config.continual.{reason}; use 0")
    if chain.stage > last:
        raise UserError(f"config.continual.stage = {chain.stage} is not of 1 to {last}")
    if chain.stage > 1 and not config.init_from:
        raise UserError(
            f"config.continual.stage = {chain.stage} starts from the run of the task before; give "
            "its folder as config.init_from, or use 0 for the whole chain"
        )


def _given(config: Config, *names: str) -> list[str]:
    """Those of the config keys that are set, with their values."""
    values = {name: config[name.split(".")[0]][name.split(".")[1]] for name in names}
    return [f"config.{name} = {value}" for name, value in values.items() if value]


FEATURE_CHECKS = (check_prompt, check_continual)
