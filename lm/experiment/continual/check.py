"""Is this chain of tasks possible? Each failure names the value, the limit and the remedy, before
any work.
"""

from lm.config import Config
from lm.errors import UserError
from lm.tasks import build_task

HOLDING = (
    "continual.replay_fraction",
    "continual.memory_size",
    "regularization.ewc",
)  # on to earlier tasks


def check_continual(config: Config) -> None:
    """Raises UserError for the first impossible setting of config.continual or
    regularization.ewc.
    """
    if config.continual.sources:
        _check_tasks(config)
        _check_place(config)
    elif knobs := _given(config, *HOLDING, "continual.joint", "continual.stage"):
        raise UserError(f"{knobs[0]} is of several tasks; name them in config.continual.sources")


def _check_tasks(config: Config) -> None:
    """There must be several, whose rows and parameters can be told apart and handed on."""
    sources = tuple(config.continual.sources)
    knob, task = f"config.continual.sources = {sources}", config.task.name
    if len(set(sources)) < max(len(sources), 2):
        raise UserError(
            f"{knob}: give two tasks or more, each once; a single one is config.data.source"
        )
    if not task:
        raise UserError(f"{knob} hold labelled examples; say of what in config.task.name")
    if build_task(config).packs:
        raise UserError(f"{knob}: task {task} packs examples into shared rows; use another task")
    if config.task.validation_source:
        raise UserError(
            f"config.task.validation_source = {config.task.validation_source!r} is held out of "
            f"one task; of "
            "several, each holds out the share config.data.validation_fraction: leave it out"
        )
    if config.finetuning.method != "full":
        raise UserError(
            f"config.finetuning.method = {config.finetuning.method!r}: a run of a chain starts "
            f"from all "
            "parameters of the one before, and this saves a part of them; use full"
        )
    if config.regularization.penalty_adaptation:
        raise UserError(
            f"config.regularization.penalty_adaptation = "
            f"{config.regularization.penalty_adaptation} follows the gap of one task; set "
            "it to 0 in a chain"
        )


def _check_place(config: Config) -> None:
    """What holds on to earlier tasks must have some, and a run its place among the others."""
    chain, held = config.continual, _given(config, *HOLDING)
    last = 1 if chain.joint else len(chain.sources)
    if chain.memory_size and not chain.replay_fraction:
        raise UserError(
            f"config.continual.memory_size = {chain.memory_size} rows are kept to be replayed, and "
            "config.continual.replay_fraction = 0.0 replays none; set it, or memory to 0"
        )
    if held and (chain.joint or chain.stage == 1):
        why = "jointly = True has none" if chain.joint else "stage = 1 is the first"
        raise UserError(f"{held[0]} holds on to earlier tasks, and config.continual.{why}; use 0")
    if chain.stage > last:
        raise UserError(f"config.continual.stage = {chain.stage} is not of 1 to {last}")
    if chain.stage > 1 and not config.init_from:
        raise UserError(
            f"config.continual.stage = {chain.stage} goes on from the run of the task before; give "
            "its folder as config.init_from, or use 0 for the whole chain"
        )


def _given(config: Config, *names: str) -> list[str]:
    """Those of the knobs that are set, with their values."""
    values = {name: config[name.split(".")[0]][name.split(".")[1]] for name in names}
    return [f"config.{name} = {value}" for name, value in values.items() if value]
