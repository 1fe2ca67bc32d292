"""The contract of objectives, and the facts that each states about itself."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Key
from lm.data.tokenizer import Tokenizer
from lm.model.batch import Batch

_MULTIPLIER = 0x9E3779B1

MaskRate = Annotated[float, Key("corruption.mask_rate", above=0, below=1)]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Rows and a random key to a batch: a pure function, row by row.

    Attributes:
      tokenizer: of the rows; says which tokens are special.
      length: L, tokens to predict in a row.

    Facts:
      architecture: which `model.architecture` it trains.
      metric: what tables compare: bits per byte where its targets are the rows' whole text, else
        nats per token that it predicts.
      accuracy: evaluation also reports how often the likeliest token is the target.
      pairs: its rows hold pairs of texts.
    """

    tokenizer: Tokenizer
    length: int

    architecture: ClassVar[str] = "decoder"
    metric: ClassVar[str] = "eval/nats_per_token"
    accuracy: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    @property
    def readout(self) -> str:
        """Which hidden states the head sees: a name of `lm.model.pooling.READOUTS`."""
        return "all_positions"

    @property
    def num_classes(self) -> int:
        """How many classes the head chooses among; 0: the tokens of the vocabulary."""
        return 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in order; (): they are no fixed set."""
        return ()

    @property
    def real_targets(self) -> bool:
        """Whether targets are real numbers, and not tokens or classes."""
        return False

    def __call__(self, rows: Mapping[str, jax.Array], key: jax.Array) -> Batch:
        """What rows teach.

        Args:
          rows: as `abstract_rows` describes them.
          key: of the step in training; the same always in evaluation. Draws depend on it and on
            the row's own tokens alone: neither batch size, accumulation nor devices matter.
        """
        raise NotImplementedError

    def opened(self, tokens: jax.Array) -> jax.Array:
        """Inputs [B, L] of packed documents, each opened by beginning-of-text where the tokenizer
        has one: what is stored is the END that closes the document before.
        """
        end, start = self.tokenizer.end, self.tokenizer.start
        return tokens if start == end else jnp.where(tokens == end, start, tokens)

    def abstract_rows(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of B rows: "tokens" [B, L+1]; "segments" [B, L], 0 at padding; "bytes"
        [B] of text that the targets stand for.
        """
        shapes = {"tokens": (size, self.length + 1), "segments": (size, self.length)}
        shapes |= {"bytes": (size,)}
        return {name: jax.ShapeDtypeStruct(s, jnp.int32) for name, s in shapes.items()}

    @classmethod
    def share(cls, options: Mapping[str, Any]) -> float:
        """About how many of a row's positions count in the loss, above 0, at most 1."""
        del options
        return 1.0

    @classmethod
    def own_options(cls) -> set[str]:
        """Names of the options that this objective has."""
        return set(cls.__dataclass_fields__) - set(Objective.__dataclass_fields__)


def row_keys(key: jax.Array, tokens: jax.Array) -> jax.Array:
    """A key for every row of tokens [B, n], [B]: a function of `key` and that row alone.

    Rows are distinguished by the sum of tokens times powers of an odd number, modulo 2^32.
    """
    powers = np.cumprod(np.full(tokens.shape[1], _MULTIPLIER, np.uint32), dtype=np.uint32)
    prints = jnp.sum((tokens.astype(jnp.uint32) + 1) * powers, axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, prints)
