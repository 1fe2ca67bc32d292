"""Holds a trained model with all that its use needs: config, tokenizer, program and parameters."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from lm.config import Config
from lm.data import Dataset, Tokenizer
from lm.data.chat import Chat
from lm.data.special_tokens import EncoderDecoderTokens, SpecialTokens, encoder_decoder_tokens
from lm.errors import UserError
from lm.tasks.base import Labels, Task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.training.prepare import prepare_corpus
from lm.training.program import Program


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run as one of its checkpoints has it.

    Attributes:
      config, tokenizer, program: as in training.
      params: the parameters to evaluate (the moving average where there is one).
      step: of the checkpoint.
      compression: how its weights were compressed: a name of `COMPRESSIONS` of
        `lm.checkpoints.compression`; "": they are as trained.
    """

    config: Config
    tokenizer: Tokenizer
    program: Program
    params: Mapping[str, Any]
    step: int
    compression: str = ""

    @property
    def _packs_texts(self) -> bool:
        """Whether it was trained here on texts in packed rows, and on no task."""
        return self.step > 0 and not self.config.task.name

    @property
    def frame(self) -> EncoderDecoderTokens:
        """The tokens around the texts of an encoder-decoder: config.special_tokens, but END where
        an objective has trained it, which packs texts so.
        """
        tokens = None if self._packs_texts else self.config.special_tokens
        return encoder_decoder_tokens(tokens, self.tokenizer.end)

    @property
    def opens(self) -> tuple[int, ...]:
        """The tokens that open a decoder's text: those of its tokenizer, such as Llama's <s>, or
        none; of a run that was trained here on texts, the one that opens each of these.
        """
        return (self.tokenizer.start,) if self._packs_texts else self.tokenizer.specials.before

    @property
    def around(self) -> SpecialTokens:
        """The tokens around a text that a decoder or encoder reads as a whole: those that it was
        trained with here; else, of a decoder, those of its tokenizer.
        """
        decodes = self.config.model.architecture == "decoder"
        if decodes and not self.step:
            return self.tokenizer.own_specials
        opened = decodes and self._packs_texts
        return SpecialTokens.opened_by(self.opens) if opened else self.tokenizer.specials

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
