"""Restores a run from its workdir for evaluation and generation: config, text, parameters."""

import dataclasses
import functools
import sys
from typing import Any

import jax
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.initialize import restored_state
from lm.checkpoints.resume import FREE, LENGTH
from lm.checkpoints.run_files import check_same_config, check_same_text, recorded_config
from lm.config import CACHE, Config
from lm.data import Dataset, Tokenizer
from lm.data.chat import Chat
from lm.data.special_tokens import EncoderDecoderTokens, SpecialTokens, encoder_decoder_tokens
from lm.errors import UserError
from lm.tasks.base import Labels, Task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.training.profiling.memory import check_memory
from lm.training.program import corpus_program, prepare_corpus
from lm.training.regularization.teacher import without_teacher
from lm.training.train_step import Program
from lm.training.validate import check, check_recorded

# Config keys that may differ from those of the workdir.
_FREE = (*(key for key in FREE if key != "model.scan"), *LENGTH)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run as one of its checkpoints has it.

    Attributes:
      config, tokenizer, program: as in training.
      params: the parameters to evaluate (the moving average where there is one).
      step: of the checkpoint.
    """

    config: Config
    tokenizer: Tokenizer
    program: Program
    params: Any
    step: int

    @property
    def frame(self) -> EncoderDecoderTokens:
        """The tokens around the texts of an encoder-decoder: config.special_tokens, but END where
        an objective has trained it, which packs texts so.
        """
        packed = self.step > 0 and not self.config.task.name
        return encoder_decoder_tokens(
            None if packed else self.config.special_tokens, self.tokenizer.end
        )

    @property
    def opens(self) -> tuple[int, ...]:
        """The tokens that open a decoder's text: those of its tokenizer, such as Llama's <s>, or
        none; of a run that was trained here on texts, the one that opens each of these.
        """
        packed = self.step > 0 and not self.config.task.name
        return (self.tokenizer.start,) if packed else self.tokenizer.specials.before

    @property
    def around(self) -> SpecialTokens:
        """The tokens around a text that a decoder or encoder reads as a whole: those that it was
        trained with here; else, of a decoder, those of its tokenizer.
        """
        if self.config.model.architecture == "decoder" and not self.step:
            return self.tokenizer.own_specials
        packed = self.config.model.architecture == "decoder" and not self.config.task.name
        return SpecialTokens.opened_by(self.opens) if packed else self.tokenizer.specials

    @property
    def chat(self) -> Chat:
        """How its conversations are written; UserError where it holds none."""
        if (architecture := self.config.model.architecture) != "decoder":
            raise UserError(f"conversations want a decoder, and {architecture} is none")
        return Chat(self.tokenizer, self.config.task.template)

    @property
    def task_layout(self) -> tuple[Task, Labels, Layout]:
        """Of a task: itself, its labels in the order of their numbers, and what its rows are.

        Raises:
          UserError: a checkpoint was opened as a language model, to be asked config.prompt.
        """
        own = self.corpus.objective(self.config) if self.step else self.program.objective
        if not isinstance(own, TaskObjective):
            raise UserError(
                f"config.prompt.source = {self.config.prompt.source!r} asks a language model "
                f"in words, without a head for task {self.config.task.name}; leave it out"
            )
        task = own.task if self.step else own.task.with_labels(own.labels)
        return task, own.labels, own.layout

    @functools.cached_property
    def corpus(self) -> Dataset:
        """The prepared text, made where the cache lacks it."""
        return prepare_corpus(self.config)


def restore(
    workdir: epath.Path,
    step: int | None = None,
    given: Config | None = None,
    cache: str = "",
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
    program = corpus_program(without_teacher(config), corpus)
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
<<<<<<< HEAD
    told = [f"{key} = {value!r}" for key, value in named.items() if value]
    if told:
        print(f"{workdir} names what is read: {', '.join(told)}", file=sys.stderr, flush=True)


def open_pretrained(config: Config, *, headless: bool = False) -> Restored:
    """The checkpoint of transformers that an adopted config's init_from names, untrained here.

    Args:
      config: with the checkpoint's model.
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
        params, origin = pretrained_params(program, config, jax.random.key(config.seed))
    print(origin, flush=True)
    return Restored(config, tokenizer, program, params, 0)


def _with_own_head(config: Config) -> tuple[Config, Tokenizer, Program]:
    """Of a checkpoint that was fine-tuned for the config's task: the config with its labels, where
    it names none, and what opens it.

    Raises:
      UserError: it has no head for the task, or one that is not ours.
    """
    checkpoint, task = open_checkpoint(config.init_from), config.task.name
    if task in ("classification", "token_classification") and not config.task.labels:
        config = override(config, {"task.labels": checkpoint.labels})
    tokenizer = make_tokenizer(config.data.tokenizer, config.data.vocab_size, ())
    architecture = config.model.architecture
    wanted = {
        "length": config.data.seq_len,
        "memory": architecture == "encoder_decoder",
        "decoder": architecture == "decoder",
        "frame": config.special_tokens,
    }
    labels = build_task(config).collect_labels(())
    layout = layout_of(build_task(config), wanted, tokenizer, labels)
    if architecture == "decoder":
        layout = dataclasses.replace(layout, specials=tokenizer.own_specials)
    if reason := "" if predicts_tokens(config) else checkpoint.head_mismatch(config, labels):
        raise UserError(f"{config.init_from}: its head is not that of config.task: {reason}")
    program = shared_program(config, tokenizer.vocab_size, tokenizer=tokenizer, layout=layout)
    shapes = _shapes(program)
    found = checkpoint.find(shapes, config, labels)
    if any(name not in found for name in shapes if name.startswith(("head/", "read/"))):
        raise UserError(
            f"{config.init_from} has not learned config.task.name = {task!r}; train it first, or "
            "name questions in config.prompt.source"
        )
    return config, tokenizer, program


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract_params)
    return {path_name(path): leaf.shape for path, leaf in leaves}
=======
    sources = [f"{key} = {value!r}" for key, value in named.items() if value]
    if sources:
        print(f"{workdir} names what is read: {', '.join(sources)}", file=sys.stderr, flush=True)
>>>>>>> 653e664 (The start of a run in the field's words: initial parameters and their checksums, layouts of layers; restoring a workdir and opening a checkpoint of transformers have a file each)
