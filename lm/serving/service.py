"""A model as it is served: what may be asked of it, the engine, and its programs, all of which are
compiled before the first request.
"""

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from etils import epath

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.evaluation.attention_weights import has_attention_weights
from lm.finetuning.adapted import max_text_len_of
from lm.generation.sample import SamplingParams
from lm.serving.adapters import Adapters
from lm.serving.buckets import buckets
from lm.serving.engine import Engine
from lm.serving.predictor import ENDPOINTS, Predictor
from lm.serving.row_programs import (
    LONGEST_SHOWN,
    AttentionMaps,
    Embedder,
    NextTokens,
    Scorer,
    under_softmaxes,
)
from lm.serving.row_queue import Arrays, Compute, RowProgram, RowQueue
from lm.serving.slot_sampling import as_arrays
from lm.serving.slots import Slots
from lm.serving.weights import adapter_weights, fixed_weights, with_adapter
from lm.tasks import predicts_tokens


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """How a model is served.

    Attributes:
      slots: B, texts that are continued at the same time.
      max_model_len: S, tokens of a prompt and its continuation; None: as many as the model has.
      max_queue: requests that may wait.
      pooling, normalize: of embeddings; see `lm.evaluation.embed`.
      adapters: the folder of the adapters that may be loaded; None: none may.
      max_adapters: places for adapters on the device, the server's own among them.

    """

    slots: int = 16
    max_model_len: int | None = None
    max_queue: int = 256
    pooling: str = "mean"
    normalize: bool = False
    adapters: epath.Path | None = None
    max_adapters: int = 4


class Service:
    """A model, the engine that computes with it, and what it can be asked.

    Attributes:
      name: of the model, as clients ask for it.
      run: the model.
      length: S, tokens of a prompt and its continuation.
      engine: computes; not started yet.
      adapters: by name.
      slots: None where the model writes no text.
      embedder, scorer, predictor, next_tokens, attention: None where the model has no such thing.
    """

    def __init__(
        self,
        run: Restored,
        name: str,
        options: ServiceOptions,
        open_run: Callable[[epath.Path], Restored],
    ):
        """Compiles nothing yet; `open_run` restores the run of an adapter.

        Raises:
          UserError: the options do not suit the model.
        """
        self.run, self.name = run, name
        config, model = run.config, run.program.model
        self.length = _length(max_text_len_of(model), options.max_model_len)
        decoder = config.model.architecture == "decoder"
        writes = predicts_tokens(config) and config.model.architecture != "encoder"
        writes = writes and not model.output_head().sequence_level
        prefix = config.objective == "prefix"
        self.slots = Slots(run.program, options.slots, self.length, prefix) if writes else None
        self.embedder = Embedder(run, self.length, options.pooling, options.normalize)
        self.scorer = Scorer(run, self.length) if predicts_tokens(config) else None
        self.predictor = Predictor(run) if config.task.name in ENDPOINTS else None
        self.next_tokens = NextTokens(run, self.length) if writes and decoder else None
        shown = config.model.architecture != "encoder_decoder" and has_attention_weights(config)
        longest = min(self.length, LONGEST_SHOWN)
        self.attention = AttentionMaps(run, longest) if shown else None
        parts = (self.embedder, self.scorer, self.predictor, self.next_tokens, self.attention)
        programs: dict[str, tuple[Compute, int]] = {
            each.program: (each.compute, each.size) for each in parts if each is not None
        }
        if options.adapters is None:
            weights = fixed_weights(run.params)
        else:
            weights = adapter_weights(run, options.max_adapters)
        rows = RowQueue(run.program.mesh, programs)
        self.engine = Engine(weights, self.slots, rows, max_waiting=options.max_queue)
        self.adapters = Adapters(name, self.engine, options.adapters, open_run)

    @property
    def abilities(self) -> list[str]:
        """The ends of the paths that this model answers."""
        task = self.run.config.task.name
        chats = self.slots is not None and self.run.config.model.architecture == "decoder"
        having = {
            "completions": self.slots is not None,
            "chat/completions": chats,
            "score": self.scorer is not None,
            "embeddings": True,
            "classify": ENDPOINTS.get(task) == "classify",
            "tag": ENDPOINTS.get(task) == "tag",
            "answer": ENDPOINTS.get(task) == "answer",
            "next_tokens": self.next_tokens is not None,
            "attention": self.attention is not None,
        }
        return [name for name, has in having.items() if has]

    def compile(self) -> Iterator[None]:
        """Compiles every program for every shape that requests have; yields after each."""
        engine = self.engine
        if self.slots is not None:
            yield from self.slots.compile(engine.weights, as_arrays(SamplingParams()))
        for part in (self.embedder, self.scorer, self.next_tokens, self.attention):
            if part is not None:
                for length in buckets(part.length):
                    self._compute(part.program, part.examples(length))
                    yield
        if self.next_tokens is not None:
            under_softmaxes(np.zeros(self.run.tokenizer.vocab_size, np.float32))
        if self.predictor is not None:
            self._compute(self.predictor.program, self.predictor.example_row())
        if engine.weights.adapters:
            first = jax.tree.map(lambda leaf: leaf[0], engine.weights.adapters)
            engine.weights = with_adapter(engine.weights, first, np.int32(0))

    @property
    def compiled(self) -> int:
        """How many programs have been compiled."""
        slots = 0 if self.slots is None else self.slots.compiled
        return slots + self.engine.rows.compiled

    def submit_rows(
        self, part: RowProgram, rows: Sequence[Arrays], model: str
    ) -> "list[concurrent.futures.Future[Arrays]]":
        """Queues rows for one of the service's parts, by the adapter of a name."""
        with self.engine.lock:
            return self.engine.submit_rows(part.program, rows, self.adapters.place(model))

    def _compute(self, program: str, row: Arrays) -> None:
        engine = self.engine
        engine.rows.compute(engine.weights, program, [row], 0)


def _length(available: int, wanted: int | None) -> int:
    if wanted is not None and not 2 <= wanted <= available:
        raise UserError(
            f"--max_model_len={wanted} must be from 2 to {available}, the positions that the model "
            "has for a text"
        )
    return available if wanted is None else wanted


def model_name(init_from: str) -> str:
    """The name of a checkpoint of transformers: that of its folder, or on the hub."""
    return pathlib.PurePath(init_from.partition(":")[2]).name or "model"
