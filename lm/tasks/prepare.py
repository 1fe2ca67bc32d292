"""Prepares the labelled examples of a task: splits them, makes their rows, and keeps the held-out
examples beside these.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from lm.config import Config, to_dict
from lm.data import Tokenizer, make_tokenizer, sources
from lm.data.cached_rows import RowWriter, cached_rows
from lm.data.deduplicate import SPLITS, split_position
from lm.data.make_tokenizer import warn_of_long_words
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError, counted
from lm.tasks import build_task
from lm.tasks.base import Example, Task
from lm.tasks.layout import Layout, Row
from lm.tasks.packing import most_texts
from lm.tasks.records import records
from lm.tasks.task_data import TaskData

# Options that no row depends on.
_LATE: Any = {
    "metric": "",
    "max_new_tokens": 0,
    "max_answer_length": None,
    "no_answer_threshold": 0.0,
}
_TOGETHER = 1000  # examples that are tokenized together


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
        "has_encoder": config.model.architecture == "encoder_decoder",
        "special_tokens": to_dict(config)["special_tokens"],
        "options": dataclasses.asdict(dataclasses.replace(task, **_LATE)),
    }
    names = list(config.continual.sources) or [wanted["source"]]
    wanted["source"] = " + ".join(names)
    prints = [sources.fingerprint(each) for each in (*names, wanted["held_out"]) if each]
    build = functools.partial(_build, task=task, config=config, names=names, wanted=wanted)
    found = cached_rows(cache, wanted["name"], wanted, prints, build)
    manifest = found.manifest
    task = dataclasses.replace(task, **manifest["inferred_options"])
    task, notes = task.with_answer_limit(manifest["answers"])
    for note in (*manifest["notes"], *notes):
        _print_once(f"{manifest['source']}: {note}")
    kept = {
        "encoder_decoder": encoder_decoder_tokens(config.special_tokens, found.tokenizer.end),
        "specials": found.tokenizer.specials,
        "labels": tuple(manifest["labels"]),
    }
    layout = Layout(**manifest["layout"] | kept)
    data = TaskData(**vars(found), task=task, layout=layout)
    stage, jointly = config.continual.stage, config.continual.joint
    return data.only(stage - 1) if stage and not jointly else data


def _build(
    folder: epath.Path, task: Task, config: Config, names: Sequence[str], wanted: dict[str, Any]
) -> dict[str, Any]:
    """Fills `folder` with the rows of all sources; returns the manifest."""
    found = [_examples(task, name, wanted) for name in names]
    examples = {split: [e for each in found for e in each[split]] for split in SPLITS}
    inferred, notes = task.infer_options([e for each in examples.values() for e in each])
    manifest = _write(folder, dataclasses.replace(task, **inferred), config, examples)
    manifest |= {"inferred_options": inferred, "notes": notes}
    if len(names) > 1:
        manifest["tasks"] = [
            {"source": name, "splits": {s: _counted(s, each[s], wanted["seq_len"]) for s in SPLITS}}
            for name, each in zip(names, found, strict=True)
        ]
    return manifest


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
                "held-out examples in config.task.validation_source"
            )
    return found


def _split(task: Task, example: Example, validation: float) -> str:
    key = hashlib.sha256(json.dumps(task.texts(example)).encode()).digest()
    return "validation" if split_position(key) < validation else "train"


def _write(
    folder: epath.Path, task: Task, config: Config, examples: dict[str, list[Example]]
) -> dict[str, Any]:
    """Fills `folder` with rows and held-out examples; returns what the manifest says of them."""
    labels = task.collect_labels(examples["train"])
    texts = ((each["place"], text) for each in examples["train"] for text in task.texts(each))
    data = config.data
    tokenizer = make_tokenizer(data.tokenizer, data.vocab_size, warn_of_long_words(texts))
    choices = max(task.num_choices(example) for each in examples.values() for example in each)
    layout = layout_of(task, config, tokenizer, labels, choices)
    fields = {**task.abstract_row(layout), "row": np.zeros((), np.int32)}
    writer = RowWriter(folder, fields, layout.num_classes or tokenizer.vocab_size)
    summaries, classes, sizes = {}, [], []
    for split in SPLITS:
        rows = rows_of(task, examples[split], tokenizer, layout, labels)
        if task.shares_rows and split == "train":
            # Held-out examples keep rows of their own, by which their outputs are found.
            rows = task.pack(rows, layout)
        for row in rows:
            targets = np.zeros(0, int)
            if not task.real_targets:
                targets = row["tokens"][1:] if task.predicts_tokens else row["targets"]
                if split == "train":
                    classes.append(targets[0])
                    sizes.append(task.answer_length(row))
                targets = targets[row["weights"] > 0]
            number = {"row": np.array(writer.num_rows[split] + 1)}
            writer.write(split, {name: x[None] for name, x in {**row, **number}.items()}, targets)
        counts = _counted(split, examples[split], layout.length)
        summaries[split] = {**counts, "rows": writer.num_rows[split]}
    writer.finish(tokenizer, classes=np.array(classes, np.int32))
    held_out = filter(has_rows, examples["validation"])
    lines = (json.dumps(example, ensure_ascii=False) for example in held_out)
    (folder / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return {
        "hash": _hash(examples),
        "tokenizer": tokenizer.spec,
        "labels": list(labels),
        "layout": dataclasses.asdict(layout),
        "splits": summaries,
        "answers": task.answer_statistics(examples["train"], sizes),
    }


@functools.cache  # a sweep opens the same data again and again
def _print_once(note: str) -> None:
    print(note, file=sys.stderr, flush=True)


def layout_of(
    task: Task, config: Config, tokenizer: Tokenizer, labels: tuple[str, ...], choices: int = 0
) -> Layout:
    """What a task's rows are made of."""
    length, architecture = config.data.seq_len, config.model.architecture
    layout = Layout(
        length=length,
        start=tokenizer.start,
        end=tokenizer.end,
        specials=tokenizer.specials,
        has_encoder=architecture == "encoder_decoder",
        decoder=architecture == "decoder",
        encoder_decoder=encoder_decoder_tokens(config.special_tokens, tokenizer.end),
        texts=most_texts(length) if task.packing else 1,
        choices=choices,
        labels=labels,
    )
    return dataclasses.replace(layout, num_classes=task.num_classes(labels, layout))


def _hash(examples: dict[str, list[Example]]) -> str:
    """Of the examples that have rows, whatever length and tokenizer made of them."""
    kept = {
        split: [{k: v for k, v in e.items() if k != "rows"} for e in filter(has_rows, each)]
        for split, each in examples.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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
        encoded = task.tokenize(together, tokenizer)
        for example, each in zip(together, encoded, strict=True):
            rows = task.rows(example, each, layout, numbers)
            example["rows"] = [done, done + len(rows)]
            done += len(rows)
            yield from rows


def has_rows(example: Example) -> bool:
    """Whether rows were made of an example."""
    first, end = example["rows"]
    return first < end
