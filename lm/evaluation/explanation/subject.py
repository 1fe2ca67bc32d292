"""The text that is explained: its tokens, how they read and which words they form, and the rows in
which some of them are left out.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lm.checkpoints.restored import Restored
from lm.data import Encoded, Tokenizer
from lm.errors import UserError, nearest
from lm.finetuning import method_names
from lm.finetuning.adapted import max_text_len_of
from lm.generation.prompts import add_opening_tokens
from lm.model.batch import Batch
from lm.output import OUTPUTS
from lm.tasks.layout import fit
from lm.tasks.records import Record

TASKS = ("classification", "regression")
VIRTUAL_TOKENS = {"prompt", "prefix"}  # methods of fine-tuning that add keys of their own


@dataclasses.dataclass(frozen=True)
class Subject:
    """A text as the model reads it.

    Attributes:
      ids, types: int32 [L], the tokens and their types; special ones too.
      pieces: what each token stands for, L texts.
      words: int32 [L], the number of the word that each token is of, from 0; -1 at special tokens.
      word_texts: what each word stands for, with the white space before it.
      at_end: the decision is read at the last token; else where the task's readout has it.
      prefix: all tokens attend to each other, in a prefix language model.
      labels: the names of the classes; (): the tokens of the vocabulary.
    """

    ids: np.ndarray
    types: np.ndarray
    pieces: tuple[str, ...]
    words: np.ndarray
    word_texts: tuple[str, ...]
    at_end: bool
    prefix: bool = False
    labels: tuple[str, ...] = ()

    @property
    def special(self) -> np.ndarray:
        """Boolean [L]: tokens that stand for no text."""
        return self.words < 0

    def batch(self, kept: np.ndarray, ids: np.ndarray | None = None) -> Batch:
        """A row for each row of `kept`, boolean [B, L].

        What is not kept stands behind the rest as padding, so that nothing attends to it; the rest
        keep their positions. `ids` [B, L] are other tokens in the places of these.
        """
        order = np.argsort(~kept, axis=1, kind="stable")
        tokens = np.broadcast_to(self.ids if ids is None else ids, kept.shape)
        real = np.take_along_axis(kept, order, axis=1)
        ends = np.maximum(kept.sum(axis=1) - 1, 0) if self.at_end else np.zeros(len(kept), int)
        return Batch(
            inputs=jnp.asarray(np.take_along_axis(tokens, order, axis=1)),
            targets=jnp.zeros((len(kept), 1), jnp.int32),
            weights=jnp.ones((len(kept), 1), jnp.float32),
            segments=jnp.asarray(real, jnp.int32),
            positions=jnp.asarray(order, jnp.int32),
            token_types=jnp.asarray(self.types[order]),
            prefix=jnp.asarray(real) if self.prefix else None,
            target_positions=jnp.asarray(ends[:, None], jnp.int32),
        )


def read_subject(run: Restored, texts: Sequence[str]) -> Subject:
    """The texts that a run is to explain: one, or one for each column of config.task.text.

    Raises:
      UserError: the run makes no single decision, or the texts do not fit.
    """
    config = run.config
    if found := sorted(VIRTUAL_TOKENS & set(method_names(config))):
        raise UserError(
            f"explain shows the tokens of a text, and method {found[0]} of config.finetuning adds "
            "virtual ones; explain a run of another method, such as lora"
        )
    if config.task.name:
        return _of_task(run, texts)
    if config.model.architecture != "decoder":
        raise UserError(
            f"explain wants a decoder or a classifier, and this run is an {_called(run)} without a "
            "task; give a run with config.task.name = 'classification'"
        )
    if OUTPUTS[config.output.head].sequence_level:
        raise UserError(f"head {config.output.head} scores whole sequences; explain wants tokens")
    if len(texts) != 1:
        raise UserError(f"explain takes one --prompt of a language model; {len(texts)} are given")
    (encoded,) = run.tokenizer.encode_batch(list(texts))
    ids = add_opening_tokens(run.tokenizer, encoded.ids, run.opens)
    if len(ids) > (limit := max_text_len_of(run.program.model)):
        raise UserError(
            f"the text has {len(ids)} tokens, more than the model's {limit}; shorten it"
        )
    before = len(ids) - len(encoded.ids)
    placed = _placed(run.tokenizer, ids, [(before, texts[0], encoded)])
    return Subject(
        ids, np.zeros_like(ids), *placed, at_end=True, prefix=config.objective == "prefix"
    )


def _of_task(run: Restored, texts: Sequence[str]) -> Subject:
    name, columns = run.config.task.name, tuple(run.config.task.text)
    if name not in TASKS:
        raise UserError(f"task {name} makes many decisions at once; explain wants {TASKS[0]}")
    if run.config.model.architecture == "encoder_decoder":
        raise UserError("explain wants a decoder or an encoder, and this is an encoder-decoder")
    if len(texts) != len(columns):
        raise UserError(
            f"explain needs a --prompt for each column that the run reads: {', '.join(columns)}; "
            f"{len(texts)} given"
        )
    task, labels, layout = run.task_layout
    record = Record("--prompt", dict(zip(columns, texts, strict=True)))
    example = task.unlabelled_example(record, labels)
    (encoded,) = task.tokenize([example], run.tokenizer)
    numbers = {label: number for number, label in enumerate(labels)}
    (row,) = task.rows(example, encoded, layout, numbers)
    length, around = int(row["segments"].sum()), layout.around(len(texts))
    kept = fit([len(each.ids) for each in encoded], layout.length - sum(map(len, around)))
    parts, begin = [], len(around[0])
    for text, each, size, behind in zip(texts, encoded, kept, around[1:], strict=True):
        cut = each._replace(ids=each.ids[:size], offsets=each.spans[:size])
        parts.append((begin, text, cut))
        begin += size + len(behind)
    ids, types = row["inputs"][:length], row["types"][:length]
    at_end = run.config.task.pooling == "last"
    return Subject(ids, types, *_placed(run.tokenizer, ids, parts), at_end, labels=tuple(labels))


def _placed(
    tokenizer: Tokenizer, ids: np.ndarray, parts: Sequence[tuple[int, str, Encoded]]
) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
    """The pieces, words and texts of words, of parts (first place, text, tokens); what stands
    between two tokens is of the second.
    """
    pieces = [special_name(tokenizer, int(each)) for each in ids]
    words, texts = np.full(len(ids), -1, np.int32), []
    for begin, text, encoded in parts:
        data, done = text.encode(), 0
        for offset, (token, (first, end)) in enumerate(
            zip(encoded.ids, encoded.spans, strict=True)
        ):
            if offset == 0 or tokenizer.word_starts[token]:
                texts.append(b"")
            words[begin + offset] = len(texts) - 1
            texts[-1] += data[done:end]
            pieces[begin + offset] = data[min(first, done) : end].decode("utf-8", "replace")
            done = max(done, int(end))
    return tuple(pieces), words, tuple(each.decode("utf-8", "replace") for each in texts)


def special_name(tokenizer: Tokenizer, token: int) -> str:
    """The name of a special token."""
    names = {marker.token: name for name, marker in tokenizer.markers.items()}
    own = {tokenizer.end: "<end>", tokenizer.start: "<start>"}
    return (names | {k: v for k, v in own.items() if k not in names}).get(token, f"<{token}>")


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token of the vocabulary as a reader knows it: its text, or the name of a special one."""
    if not tokenizer.ordinary[token]:
        return special_name(tokenizer, token)
    return tokenizer.decode([token]).replace("\ufffd", f"<{token}>")


def find_target(run: Restored, subject: Subject, target: str) -> int:
    """The number of a label, or of the token with which a text begins.

    Raises:
      UserError: there is no such label, or the text is empty.
    """
    if run.config.task.name:
        if target not in subject.labels:
            known = ", ".join(subject.labels)[:200] or "none: it predicts a number"
            near = nearest(target, subject.labels)
            raise UserError(f"--target={target} is no label of the run, which has {known}{near}")
        return subject.labels.index(target)
    (encoded,) = run.tokenizer.encode_batch([target])
    if not len(encoded.ids):
        raise UserError("--target= is empty; give the text that is to come next")
    return int(encoded.ids[0])


def _called(run: Restored) -> str:
    return str(run.config.model.architecture).replace("_", "-")
