"""What a server computes of whole rows: embeddings, likelihoods of answers, predictions of a task,
next-token probabilities under several softmaxes, and attention. For each a class that makes rows of
what is asked, names the program that computes them, and reads its outputs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.evaluation.attention_weights import attention_weights
from lm.evaluation.embed import check_pooling, padded_row, pool, text_rows
from lm.evaluation.prompting.query_encoder import query_encoder
from lm.evaluation.prompting.template import Query
from lm.evaluation.scoring import score_batch
from lm.generation.decode import StaticModel, next_token_log_probs
from lm.generation.prompts import prompt_batch
from lm.serving.buckets import bucket
from lm.serving.row_queue import Arrays
from lm.softmax import WEIGHTINGS
from lm.training.train_state import Params

# Weightings that sum to one, and to which a constant added to all scores means nothing, with their
# options, by what they are called.
SOFTMAXES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "softmax": ("softmax", {}),
    "temperature 0.5": ("temperature", {"temperature": 0.5}),
    "temperature 2": ("temperature", {"temperature": 2.0}),
    "entmax 1.25": ("entmax", {"alpha": 1.25}),
    "entmax 1.5": ("entmax15", {}),
    "sparsemax": ("sparsemax", {}),
    "top 4": ("top_k", {"k": 4}),
}
LONGEST_SHOWN = 128  # tokens of a text whose attention is shown


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Vectors of texts, as `run.py embed` makes them.

    Attributes:
      run: the model.
      length: S, tokens of a text, with those around it.
      pooling: a name of `lm.evaluation.embed.POOLINGS`.
      normalize: divides each vector by its length.

    Raises:
      UserError: the model has no such pooling.
    """

    run: Restored
    length: int
    pooling: str
    normalize: bool

    program: ClassVar[str] = "embed"
    size: ClassVar[int] = 8

    def __post_init__(self):
        """Checks the pooling."""
        check_pooling(self.run.config, self.pooling)

    def compute(self, params: Params, rows: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """See `lm.serving.row_queue.Compute`."""
        return pool(self.pooling, StaticModel(self.run.program.model), params, rows)

    def examples(self, length: int) -> Arrays:
        """A row of this length, by which the program is compiled."""
        return padded_row(np.zeros(1, np.int32), length)

    def rows(self, texts: Sequence[str]) -> list[Arrays]:
        """A row of each text.

        Raises:
          UserError: a text is too long.
        """
        rows, truncated = text_rows(self.run, texts, self.length)
        if truncated:
            raise UserError(f"a text has more tokens than the {self.length} that fit; shorten it")
        return [padded_row(row, bucket(len(row), self.length)) for row in rows]

    def vector(self, outputs: Arrays) -> np.ndarray:
        """Float32 [D] of a row's outputs."""
        vector = outputs["vector"]
        return vector / max(float(np.linalg.norm(vector)), 1e-12) if self.normalize else vector


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Log-likelihoods of answers behind texts, as config.prompt's evaluation computes them.

    Attributes:
      run: the model, whose head predicts tokens.
      length: S, tokens of a text and its answer.
    """

    run: Restored
    length: int

    program: ClassVar[str] = "score"
    size: ClassVar[int] = 8

    def compute(self, params: Params, rows: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """See `lm.serving.row_queue.Compute`."""
        return score_batch(StaticModel(self.run.program.model), params, rows)

    def examples(self, length: int) -> Arrays:
        """A row of this length, by which the program is compiled."""
        row = self._encoder([Query("", "a")])[0].rows[0]
        return row.padded((length, length, 0 if row.encoder_inputs is None else length))

    def rows(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[Arrays]], list[int]]:
        """The rows of each (text, answer), and how many tokens each answer has.

        Raises:
          UserError: an answer is empty, or does not fit.
        """
        found = self._encoder([Query(*pair) for pair in pairs])
        if any(each.truncated for each in found):
            raise UserError(
                f"a text and its answer have more tokens than the {self.length} that fit; "
                "shorten the text"
            )
        rows = []
        for each in found:
            size = max(max(row.sizes(self.length)) for row in each.rows)
            with_encoder = each.rows[0].encoder_inputs is not None
            sizes = size, size, size if with_encoder else 0
            rows.append([row.padded(sizes) for row in each.rows])
        return rows, [each.tokens for each in found]

    @property
    def _encoder(self) -> Any:
        run = self.run
        encoder = query_encoder(run.config, run.tokenizer, run.frame, run.opens)
        return dataclasses.replace(encoder, length=self.length)


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The next token's probabilities under several softmaxes of the same scores.

    The scores are the head's log-probabilities, which every head has; see `under_softmaxes`.

    Attributes:
      run: a decoder.
      length: S, tokens of a text.
    """

    run: Restored
    length: int

    program: ClassVar[str] = "next"
    size: ClassVar[int] = 1

    def compute(self, params: Params, rows: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """See `lm.serving.row_queue.Compute`."""
        model, tokens = self.run.program.model, rows["inputs"]
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        batch = prompt_batch(tokens, places)
        if self.run.config.objective == "prefix":
            batch = dataclasses.replace(batch, prefix=places < rows["length"][:, None])
        hidden = jnp.asarray(model.apply({"params": params}, batch, method="head_inputs"))
        last = jnp.take_along_axis(hidden, rows["length"][:, None, None] - 1, axis=1)[:, 0]
        return {"scores": next_token_log_probs(model, params, last)}

    def examples(self, length: int) -> Arrays:
        """A row of this length, by which the program is compiled."""
        return {"inputs": np.zeros(length, np.int32), "length": np.array(1, np.int32)}

    def row(self, ids: np.ndarray) -> Arrays:
        """The row of a text's token ids; UserError where it is too long."""
        if len(ids) > self.length:
            raise UserError(f"the text has {len(ids)} tokens, more than {self.length}; shorten it")
        size = bucket(len(ids), self.length)
        padded = np.pad(ids, (0, size - len(ids))).astype(np.int32)
        return {"inputs": padded, "length": np.array(len(ids), np.int32)}


@jax.jit
def under_softmaxes(scores: jax.Array) -> dict[str, jax.Array]:
    """Probabilities [V] by the names of `SOFTMAXES`, of scores [V]."""
    return {
        label: WEIGHTINGS[name].apply(scores, **options)
        for label, (name, options) in SOFTMAXES.items()
    }


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Attention's weights between the tokens of a text, of every layer and head.

    Attributes:
      run: a decoder or an encoder.
      length: S, tokens of a text, at most `LONGEST_SHOWN`.
    """

    run: Restored
    length: int

    program: ClassVar[str] = "attention"
    size: ClassVar[int] = 1

    def compute(self, params: Params, rows: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """See `lm.serving.row_queue.Compute`; [B, layers, H, L, L] of each kind."""
        tokens, real = rows["inputs"], rows["real"]
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        batch = dataclasses.replace(prompt_batch(tokens, places), segments=real)
        found = attention_weights(self.run.program.model, params, batch)
        return {name: jnp.swapaxes(weights, 0, 1) for name, weights in found.items()}

    def examples(self, length: int) -> Arrays:
        """A row of this length, by which the program is compiled."""
        return padded_row(np.zeros(1, np.int32), length)

    def ids(self, text: str) -> np.ndarray:
        """The token ids of a text with those around it, as `run.py embed` has them."""
        rows, _ = text_rows(self.run, [text], self.run.config.model.max_seq_len + 1)
        return rows[0]

    def row(self, ids: np.ndarray) -> Arrays:
        """The row of a text's token ids; UserError where it is too long."""
        if len(ids) > self.length:
            raise UserError(
                f"the text has {len(ids)} tokens; attention is shown of at most {self.length}"
            )
        size = bucket(len(ids), self.length)
        return padded_row(ids, size)
