"""Opens a checkpoint of transformers for evaluation and generation, as the start of a run."""

import dataclasses

import jax

from lm.checkpoints.hf import is_checkpoint, open_checkpoint
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.layer_layout import named_leaves
from lm.checkpoints.restored import Restored
from lm.config import Config, override
from lm.data import Tokenizer, make_tokenizer
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.tasks import build_task, predicts_tokens
from lm.tasks.prepare import layout_of
from lm.training.prepare import corpus_program, prepare_corpus, shared_program
from lm.training.profiling.memory import check_memory
from lm.training.program import Program
from lm.training.validate import check


def open_pretrained(config: Config, *, headless: bool = False) -> Restored:
    """The checkpoint of transformers that a config's init_from names, untrained here.

    Args:
      config: with the checkpoint's model; see `resolve_init`.
      headless: only hidden states are asked for, so that the checkpoint may lack its head.

    Raises:
      UserError: where the config is impossible or the checkpoint cannot be read, or lacks a head.
    """
    if not is_checkpoint(config.init_from):
        raise UserError(
            f"--config.init_from={config.init_from} is a run's folder; give it as --workdir, or "
            "a checkpoint of transformers as hf:FOLDER"
        )
    check(config)
    if config.task.name and not config.prompt.source and not headless:
        config, tokenizer, program = _with_own_head(config)
    elif OUTPUTS[config.output.head].needs_counts:
        corpus = prepare_corpus(config)
        tokenizer, program = corpus.tokenizer, corpus_program(config, corpus)
    else:
        tokenizer = make_tokenizer(config.data.tokenizer, config.data.vocab_size, ())
        program = shared_program(config, tokenizer.vocab_size, tokenizer=tokenizer)
    check_memory(program, trains=False)
    if not headless:
        open_checkpoint(config.init_from).check_has_head(_shapes(program), config)
    with jax.set_mesh(program.mesh):
        params, source = pretrained_params(program, config, jax.random.key(config.seed))
    print(source, flush=True)
    return Restored(config, tokenizer, program, params, 0)


def _with_own_head(config: Config) -> tuple[Config, Tokenizer, Program]:
    """The config, tokenizer and program of a checkpoint that was fine-tuned for its task."""
    checkpoint, task = open_checkpoint(config.init_from), config.task.name
    if task in ("classification", "token_classification") and not config.task.labels:
        config = override(config, {"task.labels": checkpoint.labels})
    tokenizer = make_tokenizer(config.data.tokenizer, config.data.vocab_size, ())
    labels = build_task(config).collect_labels(())
    layout = layout_of(build_task(config), config, tokenizer, labels)
    if config.model.architecture == "decoder":
        layout = dataclasses.replace(layout, specials=tokenizer.own_specials)
    if reason := "" if predicts_tokens(config) else checkpoint.head_mismatch(config, labels):
        raise UserError(f"{config.init_from}: its head is not that of config.task: {reason}")
    program = shared_program(config, tokenizer.vocab_size, tokenizer=tokenizer, layout=layout)
    shapes = _shapes(program)
    lacking = shapes.keys() - checkpoint.find(shapes, config, labels).keys()
    if any(name.startswith(("head/", "read/")) for name in lacking):
        raise UserError(
            f"{config.init_from} has not learned config.task.name = {task!r}; train it first, or "
            "name questions in config.prompt.source"
        )
    return config, tokenizer, program


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in named_leaves(program.abstract_params).items()}
