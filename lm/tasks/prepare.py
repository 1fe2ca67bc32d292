"""How do labelled examples get ready for training, once, and stay ready? Like a corpus: found again
by a hash of their description, built where they are missing, and visible only when whole.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lm.config import Config, to_dict
from lm.data import Tokenizer, check_tokenizer, make_tokenizer, sources
from lm.data.array_record import SplitWriter, read_rows, write_metadata
from lm.data.cache import built
from lm.data.deduplicate import SPLITS, place
from lm.data.make_tokenizer import open_tokenizer, tokenizer_fingerprint, watched
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError, counted
from lm.tasks import build_task
from lm.tasks.base import Example, Task
from lm.tasks.layout import Layout, Row
from lm.tasks.packing import most_texts
from lm.tasks.records import records

FORMAT = 12  # raise it when what is stored changes, so that nothing old is opened as new
# Options that no row depends on.
_LATE: Any = {
    "metric": "",
    "max_new_tokens": 0,
    "max_answer_length": None,
    "no_answer_threshold": 0.0,
}
_TOGETHER = 1000  # examples that are tokenized together


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The prepared examples of a task.

    Attributes:
      manifest: what they are: `task`, `source`, `hash` (of the examples in order, and their
        splits), `tokenizer` (its spec), `labels`, and in `splits`, for each, `examples`, `rows`,
        and `long`, how many examples were left out because no answer begins within a row. Of
        several sources also `tasks`, the `source` and `splits` of each. `settled` and `notes` are
        what `Task.settle` found, `answers` what `Task.answers` did.
      tokenizer: of the rows.
      task: what they are for, settled: with what only all examples told (`Task.settle`).
      layout: what a row is made of.
      number: which one of several sources is meant, from 0; None: all.
    """

    folder: epath.Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    task: Task
    layout: Layout
    number: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of their numbers."""
        return tuple(self.manifest["labels"])

    def only(self, number: int) -> "TaskData":
        """The same where one of several sources is meant: its examples are held out, and its rows
        are counted. They all share tokenizer, labels and folder.
        """
        manifest = {**self.manifest, **self.manifest["tasks"][number]}
        return dataclasses.replace(self, manifest=manifest, number=number)

    def rows(self, split: str) -> Any:
        """The rows of "train" or "validation", of all sources: a sequence, read from disk where
        indexed.
        """
        return read_rows(self.folder, split)

    def trained(self, number: int) -> np.ndarray:
        """Which training rows are of one of several sources."""
        return np.array(self._span(number, "train", "rows"))

    def examples(self) -> list[Example]:
        """The held-out examples; "rows" is the first and the one after the last of their rows."""
        lines = (self.folder / "validation.jsonl").read_text().split("\n")
        found = [json.loads(line) for line in lines if line]
        if self.number is None:
            return found
        span = self._span(self.number, "validation", "examples")
        return found[span.start : span.stop]

    def counts(self) -> np.ndarray:
        """How often each of the V classes is a target in train: int64 [V]."""
        return _load(self.folder / "counts.npy")

    def classes(self) -> np.ndarray:
        """The first target of every training row, [rows]: its class, in classification."""
        return _load(self.folder / "classes.npy")

    def _span(self, number: int, split: str, what: str) -> range:
        """The places of a source's "examples" or "rows" among those of all sources."""
        sizes = [each["splits"][split][what] for each in self.manifest["tasks"]]
        return range(sum(sizes[:number]), sum(sizes[: number + 1]))


def prepare_task(config: Config, cache: epath.PathLike) -> TaskData:
    """Opens the examples that a config describes, and prepares them first if that was not done.

    A held-out share is chosen by a hash of the texts, so that copies of a text are never on both
    sides; sources with a validation split of their own keep that, and config.task.validation_source
    names another source. A tokenizer is trained on the training texts. Of several sources, examples
    stand one source behind the other; a tokenizer is trained on all, and labels are those of all.

    Args:
      config: its groups task, continual and data, and the model's architecture.
      cache: folder that holds what is prepared.

    Raises:
      UserError: a record or a label cannot be used, or a split has no examples.
    """
    task = build_task(config)
    wanted = {
        **to_dict(config.data),
        **{name: to_dict(config.task)[name] for name in ("name", "format", "columns")},
        "held_out": config.task.validation_source,
        "decoder": config.model.architecture == "decoder",
        "memory": config.model.architecture == "encoder_decoder",
        "frame": to_dict(config)["special_tokens"],
        "options": dataclasses.asdict(dataclasses.replace(task, **_LATE)),
    }
    names = list(config.continual.sources) or [wanted["source"]]
    wanted["source"] = " + ".join(names)
    held_out, tokenizer, length = (wanted[k] for k in ("held_out", "tokenizer", "seq_len"))
    check_tokenizer(tokenizer, wanted["vocab_size"])
    prints = [sources.fingerprint(each) for each in (*names, held_out) if each]
    key = json.dumps([FORMAT, wanted, prints, tokenizer_fingerprint(tokenizer)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = epath.Path(cache).expanduser() / f"{wanted['name']}-{length}-{digest}"
    built(folder, functools.partial(_fill, task=task, names=names, wanted=wanted))
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = folder / "tokenizer.json"
    json_text = stored.read_text() if stored.exists() else None
    made = open_tokenizer(manifest["tokenizer"], json_text)
    task = dataclasses.replace(task, **manifest["settled"])
    task, notes = task.bounded(manifest["answers"])
    for note in (*manifest["notes"], *notes):
        _say(f"{manifest['source']}: {note}")
    kept = {
        "frame": encoder_decoder_tokens(config.special_tokens, made.end),
        "specials": made.specials,
    }
    kept["labels"] = tuple(manifest["labels"])
    layout = Layout(**manifest["layout"] | kept)
    data = TaskData(folder, manifest, made, task, layout)
    stage, jointly = config.continual.stage, config.continual.joint
    return data.only(stage - 1) if stage and not jointly else data


def _fill(folder: epath.Path, task: Task, names: Sequence[str], wanted: dict[str, Any]) -> None:
    """Fills `folder` with the rows of all sources, and the manifest."""
    found = [_examples(task, name, wanted) for name in names]
    examples = {split: [e for each in found for e in each[split]] for split in SPLITS}
    settled, notes = task.settle([e for each in examples.values() for e in each])
    made_of = dataclasses.replace(task, **settled)
    manifest = {"format": FORMAT, **wanted, **_build(folder, made_of, examples, wanted)}
    manifest |= {"settled": settled, "notes": notes}
    if len(names) > 1:
        manifest["tasks"] = [
            {"source": name, "splits": {s: _counted(s, each[s], wanted["seq_len"]) for s in SPLITS}}
            for name, each in zip(names, found, strict=True)
        ]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _examples(task: Task, source: str, wanted: dict[str, Any]) -> dict[str, list[Example]]:
    """The examples of each split, in the order of their source."""
    held_out, validation = wanted["held_out"], wanted["validation_fraction"]
    form, columns = wanted["format"], wanted["columns"]
    found: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for record in records(source, form, columns):
        if held_out and record.split == "validation":
            continue
        example = task.example(record)
        split = record.split or ("train" if held_out else _split(task, example, validation))
        found[split].append(example)
    if held_out:
        found["validation"] = [
            task.example(record)
            for record in records(held_out, form, columns)
            if record.split != "train"
        ]
    total = sum(map(len, found.values()))
    if total == 0:
        raise UserError(f"{source} holds no examples; choose another")
    for split, examples in found.items():
        if not examples:
            raise UserError(
                f"the {split} split of {source} is empty: it has {counted(total, 'example')}, and "
                f"config.data.validation_fraction = {validation}; change that share, or name "
                f"held-out "
                "examples in config.task.validation_source"
            )
    return found


def _split(task: Task, example: Example, validation: float) -> str:
    key = hashlib.sha256(json.dumps(task.texts(example)).encode()).digest()
    return "validation" if place(key) < validation else "train"


def _build(
    folder: epath.Path, task: Task, examples: dict[str, list[Example]], wanted: dict[str, Any]
) -> dict[str, Any]:
    """Fills `folder` with rows, metadata, held-out examples and `tokenizer.json`."""
    labels = task.labels_of(examples["train"])
    texts = ((each["place"], text) for each in examples["train"] for text in task.texts(each))
    tokenizer = make_tokenizer(wanted["tokenizer"], wanted["vocab_size"], watched(texts))
    choices = max(task.choices_of(example) for each in examples.values() for example in each)
    layout = layout_of(task, wanted, tokenizer, labels, choices)
    fields = {**task.abstract(layout), "row": np.zeros((), np.int32)}
    counts = np.zeros(layout.num_classes or tokenizer.vocab_size, np.int64)
    writers, summaries, classes, sizes = [], {}, [], []
    for split in SPLITS:
        writer = SplitWriter(folder, split, fields)
        number = 0
        rows = rows_of(task, examples[split], tokenizer, layout, labels)
        if task.packs and split == "train":
            # Held-out examples keep rows of their own, by which their outputs are found.
            rows = task.packed(rows, layout)
        for row in rows:
            number += 1
            _check_row(row, fields)
            writer.write({name: np.asarray(x)[None] for name, x in {**row, "row": number}.items()})
            if split == "train" and not task.real:
                targets = row["tokens"][1:] if task.words else row["targets"]
                np.add.at(counts, targets[row["weights"] > 0], 1)
                classes.append(targets[0])
                sizes.append(task.answer_size(row))
        writer.close()
        writers.append(writer)
        summaries[split] = {**_counted(split, examples[split], layout.length), "rows": number}
    write_metadata(folder, writers, fields)
    held_out = filter(has_rows, examples["validation"])
    lines = (json.dumps(example, ensure_ascii=False) for example in held_out)
    (folder / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for name, array in (("counts", counts), ("classes", np.array(classes, np.int32))):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array)
    if tokenizer.json is not None:
        (folder / "tokenizer.json").write_text(tokenizer.json)
    return {
        "hash": _hash(examples),
        "tokenizer": tokenizer.spec,
        "labels": list(labels),
        "layout": dataclasses.asdict(layout),
        "splits": summaries,
        "answers": task.answers(examples["train"], sizes),
    }


@functools.cache  # a sweep opens the same data again and again
def _say(note: str) -> None:
    print(note, file=sys.stderr, flush=True)


def layout_of(
    task: Task,
    wanted: Mapping[str, Any],
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    choices: int = 0,
) -> Layout:
    """What a task's rows are made of, for a wanted `length`, `memory`, `decoder` and `frame`."""
    layout = Layout(
        length=wanted["seq_len"],
        start=tokenizer.start,
        end=tokenizer.end,
        specials=tokenizer.specials,
        memory=wanted["memory"],
        decoder=wanted["decoder"],
        frame=encoder_decoder_tokens(wanted["frame"], tokenizer.end),
        texts=most_texts(wanted["seq_len"]) if task.packing else 1,
        choices=choices,
        labels=labels,
    )
    return dataclasses.replace(layout, num_classes=task.num_classes(labels, layout))


def _load(file: epath.Path) -> np.ndarray:
    with file.open("rb") as stream:
        return np.load(stream)


def _hash(examples: dict[str, list[Example]]) -> str:
    """Of the examples that have rows, whatever length and tokenizer made of them."""
    said = {
        split: [{k: v for k, v in e.items() if k != "rows"} for e in filter(has_rows, each)]
        for split, each in examples.items()
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _counted(split: str, examples: Sequence[Example], length: int) -> dict[str, int]:
    """What the manifest says of a split of one source, whose examples have learned their rows."""
    kept = sum(map(has_rows, examples))
    if not kept:
        raise UserError(
            f"none of the {len(examples)} {split} examples has an answer that begins within "
            f"config.data.seq_len = {length} tokens; raise it"
        )
    rows = examples[-1]["rows"][1] - examples[0]["rows"][0]
    return {"examples": kept, "rows": rows, "long": len(examples) - kept}


def rows_of(
    task: Task,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    layout: Layout,
    labels: Sequence[str],
) -> Iterator[Row]:
    """The rows of all examples; each example learns which are its own."""
    numbers = {label: i for i, label in enumerate(labels)}
    done = 0
    for begin in range(0, len(examples), _TOGETHER):
        together = examples[begin : begin + _TOGETHER]
        encoded = task.encoded(together, tokenizer)
        for example, each in zip(together, encoded, strict=True):
            rows = task.rows(example, each, layout, numbers)
            example["rows"] = [done, done + len(rows)]
            done += len(rows)
            yield from rows


def has_rows(example: Example) -> bool:
    """Whether rows were made of an example."""
    first, end = example["rows"]
    return first < end


def _check_row(row: Row, fields: Row) -> None:
    for name, field in fields.items():
        if name != "row" and row[name].shape != field.shape:
            raise ValueError(f"row has {name} {row[name].shape}, not {field.shape}")
