"""Prepares what a run needs beside its state: the rows of its data, their number of steps, and its
program.
"""

import functools

import jax
from ml_collections import FrozenConfigDict

from lm.config import Config, cache_folder, override, to_dict, typed
from lm.data import ByteTokenizer, DataConfig, Dataset, Tokenizer, prepare
from lm.devices.hosts import main_first
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.tasks.prepare import prepare_task
from lm.training.announce import announced
from lm.training.program import Program, build_program
from lm.training.validate_options import check_packed


def prepare_corpus(config: Config) -> Dataset:
    """The prepared rows of a config's data, made where the cache lacks them; by the first of
    several processes, and by others that have no part in its cache.
    """
    return main_first(lambda: _prepare_corpus(config))


def _prepare_corpus(config: Config) -> Dataset:
    cache = cache_folder(config, "data")
    with announced(f"preparing {config.data.source} in {cache}, once"):
        if config.task.name:
            return prepare_task(config, cache)
        check_packed(config)
        return prepare(typed(DataConfig, config), cache)


def total_steps(config: Config, corpus: Dataset) -> int:
    """Updates in the whole run: config.steps, or what config.epochs makes of the training rows.

    Raises:
      UserError: where the warm-up is as long, or there are more updates than 32 bits count.
    """
    if config.epochs is None:
        return config.steps
    rows = corpus.manifest["splits"]["train"]["rows"]
    most = (2**31 - 1) * config.batch_size / rows
    if config.epochs > most:
        raise UserError(
            f"config.epochs = {config.epochs} over {rows} rows is more steps than 2147483647; use "
            f"fewer than {most:.3g} epochs"
        )
    steps = max(1, round(config.epochs * rows / config.batch_size))
    if config.schedule.warmup_steps >= steps:
        raise UserError(
            f"config.schedule.warmup_steps = {config.schedule.warmup_steps} must be below the "
            f"{steps} steps of config.epochs = {config.epochs}; shorten the warm-up"
        )
    return steps


def corpus_program(config: Config, corpus: Dataset, teacher: Config | None = None) -> Program:
    """The program of a config for a corpus, with the words' counts where the head asks for them,
    and with the config of a teacher where it distils one.
    """
    asks = OUTPUTS[config.output.head].needs_counts
    counts = tuple(corpus.counts().tolist()) if asks else None
    objective = corpus.objective(config)
    layout = objective.layout if isinstance(objective, TaskObjective) else None
    config = override(config, {"steps": total_steps(config, corpus)})
    vocab_size = corpus.tokenizer.vocab_size
    return shared_program(config, vocab_size, counts, corpus.tokenizer, layout, teacher)


def shared_program(
    config: Config,
    vocab_size: int,
    counts: tuple[int, ...] | None = None,
    tokenizer: Tokenizer = ByteTokenizer(),  # noqa: B008 (has no state)
    layout: Layout | None = None,
    teacher: Config | None = None,
) -> Program:
    """The program of a config; one of the last two again, where only the seed, what the run starts
    from, or its place in a chain differs.

    What it compiles is kept on disk, in the config's cache.
    """
    cache = cache_folder(config, "jax")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    settings = to_dict(config) | {"seed": 0, "init_from": "", "continual": None}
    configs = FrozenConfigDict(settings), teacher and FrozenConfigDict(to_dict(teacher))
    return _program(configs[0], vocab_size, counts, tokenizer, layout, configs[1])


# The first run of a chain may differ from the others.
_program = functools.lru_cache(maxsize=2)(build_program)
