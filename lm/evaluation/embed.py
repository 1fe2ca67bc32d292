"""Embeds texts: hidden states of the last layer, pooled to one vector for each text."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lm.checkpoints.restored import Restored
from lm.config import Config
from lm.data import sources
from lm.data.files import lines_of, to_json
from lm.devices import sharding
from lm.errors import UserError
from lm.evaluation.row_outputs import row_outputs
from lm.evaluation.scored_row import MIN_LENGTH, round_up
from lm.finetuning.adapted import max_text_len_of
from lm.generation.decode import StaticModel
from lm.generation.prompts import prompt_batch
from lm.model.pooling import mean
from lm.model.transformer import Batch
from lm.tasks.load_examples import source_of
from lm.tasks.records import Record, format_of, records

ENDINGS = (".npy", ".jsonl")


class Embeddings(NamedTuple):
    """Vectors of texts.

    Attributes:
      texts: N of them.
      vectors: float32 [N, D].
      truncated: how many texts lost their last tokens, as they were longer than the model.
    """

    texts: list[str]
    vectors: np.ndarray
    truncated: int


def embed(run: Restored, texts: Sequence[str], pooling: str, normalize: bool) -> Embeddings:
    """A vector of each text.

    A text stands between the tokens of `Restored.around`, for a checkpoint those that its tokenizer
    puts there, which are pooled too, as in sentence-transformers; an encoder-decoder's encoder
    reads it between those of config.special_tokens.
    Hidden states are the outputs of the last layer and its norm, in float32.

    Args:
      run: a model; its head is not used.
      texts: N of them.
      pooling: a name of `POOLINGS`.
      normalize: divides each vector by its Euclidean length, so that products are cosines.

    Raises:
      UserError: there is no text, or the model has no such pooling.
    """
    if not texts:
        raise UserError("there is no text to embed; give --text=TEXT or --data=FILE")
    check_pooling(run.config, pooling)
    limit = max_text_len_of(run.program.model)
    rows, truncated = text_rows(run, texts, limit)
    vectors = np.zeros((len(texts), run.config.model.d_model), np.float32)
    whole = sharding.whole(run.program.mesh)
    pooled = jax.jit(functools.partial(pool, pooling), static_argnums=0, out_shardings=whole)
    compute = functools.partial(pooled, StaticModel(run.program.model), run.params)
    for length, numbers in _by_length(rows, limit).items():
        table = [padded_row(rows[i], length) for i in numbers]
        for index, outputs in row_outputs(run.program.mesh, table, run.config.batch_size, compute):
            vectors[numbers[index]] = outputs["vector"]
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return Embeddings(list(texts), vectors, truncated)


def check_pooling(config: Config, pooling: str) -> None:
    """Raises UserError where the model of a config has no such pooling."""
    if pooling not in POOLINGS:
        raise UserError(f"--pooling={pooling} is not one of {', '.join(POOLINGS)}")
    if pooling == "pooler" and not config.model.pooler:
        raise UserError(f"--pooling=pooler: this model has no pooler; use {', '.join(_OF_STATES)}")


def read_texts(config: Config, names: Sequence[str]) -> Iterator[str]:
    """The texts of files: of tables and JSON lines the columns config.task.text, joined by spaces;
    of any other file its lines, without empty ones.
    """
    for name in names:
        if format_of(name) or name.startswith("tfds:"):
            for record in records(source_of(name), "", tuple(config.task.columns)):
                yield " ".join(_column(record, column) for column in config.task.text)
            continue
        for document in sources.documents(source_of(name)):
            yield from (line for _, line in lines_of(document.text) if line.strip())


def describe(embeddings: Embeddings, file: epath.Path) -> str:
    """Says what was written to a file."""
    truncated = f"; {embeddings.truncated} were truncated" if embeddings.truncated else ""
    return f"written: {file}, vectors {list(embeddings.vectors.shape)}{truncated}"


def check_output(file: epath.Path | None) -> epath.Path:
    """The file; raises UserError where vectors cannot be written to a new file of this name."""
    if file is None or file.suffix.lower() not in ENDINGS:
        raise UserError(f"embed needs --output=FILE, a file that ends in {' or '.join(ENDINGS)}")
    if file.exists():
        raise UserError(f"{file} is there already; give a new file to write to")
    return file


def write_embeddings(embeddings: Embeddings, file: epath.Path) -> None:
    """Writes [N, D] as .npy, or as .jsonl an object for each text: "text" and "embedding"."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".npy":
        with file.open("wb") as out:
            np.save(out, embeddings.vectors)
        return
    with file.open("w") as out:
        for text, vector in zip(embeddings.texts, embeddings.vectors, strict=True):
            line = {"text": text, "embedding": [float(x) for x in vector]}
            out.write(to_json(line, ensure_ascii=False) + "\n")


def _column(record: Record, name: str) -> str:
    value = record.values.get(name)
    if not isinstance(value, str):
        raise UserError(
            f"{record.place} has no text in column {name!r}, only columns "
            f"{', '.join(record.values)}; set config.task.text"
        )
    return value


def text_rows(run: Restored, texts: Sequence[str], limit: int) -> tuple[list[np.ndarray], int]:
    """The tokens of each text, at most `limit`, and how many texts were truncated."""
    encoded = [each.ids for each in run.tokenizer.encode_batch(list(texts))]
    if run.config.model.architecture == "encoder_decoder":
        around = len(run.frame.before) + len(run.frame.after)
        rows = [run.frame.encoder_input(ids, limit) for ids in encoded]
    else:
        before, after = run.around[:2]
        around = len(before) + len(after)
        kept = [ids[: max(limit - around, 0)] for ids in encoded]
        rows = [np.concatenate([before, ids, after]).astype(np.int32) for ids in kept]
    return rows, sum(len(ids) > limit - around for ids in encoded)


def _by_length(rows: Sequence[np.ndarray], limit: int) -> Mapping[int, list[int]]:
    """The numbers of rows by the power of two to which they are padded, or `limit` below it."""
    groups: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(round_up(len(row), MIN_LENGTH, limit), []).append(number)
    return groups


def padded_row(row: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """The arrays of a text of tokens that `pool` reads, padded behind."""
    real = np.ones(len(row), np.int32)
    return {name: np.pad(x, (0, length - len(x))) for name, x in (("inputs", row), ("real", real))}


def pool(
    pooling: str, static: StaticModel, params: Mapping[str, Any], rows: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The "vector" [B, D] of each row in float32, and the number "row"."""
    inputs, real = rows["inputs"], rows["real"]
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    batch = Batch(inputs, inputs, real.astype(jnp.float32), real, positions)
    if pooling == "pooler":
        vectors: Any = static.model.apply({"params": params}, batch, method="pooled")
    elif static.model.config.encoder is not None:
        vectors = POOLINGS[pooling](_encoder_states(static, params, batch), real)
    else:
        states: Any = static.model.apply({"params": params}, batch)
        vectors = POOLINGS[pooling](states, real)
    return {"vector": vectors.astype(jnp.float32), "row": rows["row"]}


def _encoder_states(static: StaticModel, params: Mapping[str, Any], batch: Batch) -> jax.Array:
    """The hidden states [B, L, D] of an encoder-decoder's encoder; its decoder reads one token."""
    first = batch.inputs[:, :1]
    decoded = dataclasses.replace(
        prompt_batch(first, first * 0),
        encoder_inputs=batch.inputs,
        encoder_segments=batch.segments,
        encoder_positions=batch.positions,
    )
    outputs: Any = static.model.apply(
        {"params": params},
        decoded,
        capture_intermediates=lambda module, _: module.name == "encoder",
        mutable=["intermediates"],
    )
    return outputs[1]["intermediates"]["encoder"]["__call__"][0]


def _last(hidden: jax.Array, real: jax.Array) -> jax.Array:
    ends = jnp.maximum(jnp.sum(real, axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]


# Hidden states [B, L, D] and where they are real [B, L] to vectors [B, D]. "pooler" is the model's
# own layer on the first state, such as BERT's.
_OF_STATES = {
    "mean": mean,
    "first": lambda hidden, real: hidden[:, 0],
    "last": _last,
    "max": lambda hidden, real: jnp.max(
        hidden, axis=1, where=real[..., None] > 0, initial=-jnp.inf
    ),
}
POOLINGS: Mapping[str, Any] = {**_OF_STATES, "pooler": None}
