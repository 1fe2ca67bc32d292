"""Restores a run from its workdir for evaluation and generation: config, text, parameters."""

import sys

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.compression import compressed
from lm.checkpoints.identity import FREE
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.pretrained import open_pretrained
from lm.checkpoints.restored import Restored
from lm.checkpoints.resume import LENGTH
from lm.checkpoints.run_files import check_same_config, check_same_text, recorded_config
from lm.config import CACHE, Config
from lm.errors import UserError
from lm.training.prepare import corpus_program, prepare_corpus
from lm.training.profiling.memory import check_memory
from lm.training.validate import check, check_recorded

# Config keys that may differ from those of the workdir.
_FREE = (*(key for key in FREE if key != "model.scan"), *LENGTH)


def open_model(
    workdir: epath.Path | None,
    config: Config | None,
    step: int | None = None,
    *,
    headless: bool = False,
    cache: str = "",
    compress: str | None = None,
) -> Restored:
    """The run of a workdir, or without one the checkpoint of transformers that a config names; see
    `restore` and `open_pretrained`. `compress` names how its weights are compressed.
    """
    if workdir is not None:
        return compressed(restore(workdir, step, config, cache), compress)
    if step is not None:
        raise UserError("--step needs --workdir=DIR, whose checkpoints have steps; leave it out")
    assert config is not None
    return compressed(open_pretrained(config, headless=headless), compress)


def restore(
    workdir: epath.Path, step: int | None = None, given: Config | None = None, cache: str = ""
) -> Restored:
    """Reads a workdir's checkpoint; `step` None takes the newest.

    The config is the workdir's own, or `given`, which may differ as that of a run that goes on, but
    for model.scan. A workdir may be anyone's: the files that its config names outside of it are
    printed, and the cache, where compiled programs are read from, is `cache`, else that of `given`,
    else `CACHE`.

    Raises:
      UserError: where the folder is no run's, or an older version's; where its config is
        impossible, the step was not kept, or the files are damaged.
    """
    recorded = workdir / "config.json"
    if not recorded.exists():
        raise UserError(f"{workdir} has no config.json, so it is no run's folder; train one there")
    config = recorded_config(recorded)
    if config.continual.sources and not config.continual.stage:
        raise UserError(f"{workdir} is a chain of runs; name one of them, such as {workdir / '1'}")
    if given is not None:
        check(given)
        check_same_config(given, config, workdir, ignored=_FREE)
        config = given
    else:
        check_recorded(config, recorded)
        _warn_of_sources(config, workdir)
    config.cache_dir = cache or (CACHE if given is None else given.cache_dir)
    corpus = prepare_corpus(config)
    check_same_text(workdir, corpus)
    program = corpus_program(config, corpus)
    check_memory(program, trains=False)
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps
    if step is not None and step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise UserError(f"--step={step} is not in {checkpoints.folder}; it holds {kept}")
    with jax.set_mesh(program.mesh):
        state = restored_state(program, checkpoints, config, step)
    checkpoints.close()
    return Restored(config, corpus.tokenizer, program, state.eval_params, int(state.step))


def _warn_of_sources(config: Config, workdir: epath.Path) -> None:
    """Prints to stderr which files and data sets outside of it a workdir's config names."""
    tokenizer = config.data.tokenizer
    named = {
        "data.source": config.data.source if config.data.source.partition(":")[2] else "",
        "data.tokenizer": tokenizer if tokenizer.endswith(".json") else "",
        "task.validation_source": config.task.validation_source,
        "init_from": config.init_from,
        "finetuning.adapter_from": config.finetuning.adapter_from,
        "prompt.source": config.prompt.source,
        "continual.sources": tuple(config.continual.sources),
    }
    sources = [f"{key} = {value!r}" for key, value in named.items() if value]
    if sources:
        print(f"{workdir} names what is read: {', '.join(sources)}", file=sys.stderr, flush=True)
