"""Exports small trained models in every format, and tables how near each runtime's numbers are.

Command  pip install -e ".[export]"
         python experiments/export_certificates.py
Writes   experiments/results/export_certificates.json, .md
Takes    about an hour on 2 cores

Of each kind of model (decoder, encoder classifier, tagger, question answering, encoder-decoder) one
with each attention weighting and one with each head below is trained for a few steps, and exported
as StableHLO, ONNX and LiteRT; so are models that transformers has, for it. A decoder with each
other weighting, mechanism, head and position embedding follows, with random weights in which every
parameter matters. Rows that are in the results are kept; without that file all are measured.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
from etils import epath

from configs import default
from lm.attention import ATTENTIONS
from lm.checkpoints.export.command import export
from lm.checkpoints.restore import restore
from lm.checkpoints.restored import Restored
from lm.config import Config
from lm.data.files import write_json
from lm.devices.sharding import path_name
from lm.errors import UserError
from lm.experiment.provenance import commit, versions
from lm.experiment.train import train
from lm.output import OUTPUTS
from lm.softmax import WEIGHTINGS
from lm.training.prepare import corpus_program, prepare_corpus

RESULTS = ROOT / "experiments/results/export_certificates.json"
FORMATS = ("stablehlo", "onnx", "litert")
SHOWN_WEIGHTINGS = ("softmax", "sparsemax", "entmax15", "sigmoid")
SHOWN_HEADS = ("softmax", "mixture", "adaptive")
SMALL = {
    "steps": 12,
    "batch_size": 8,
    "schedule.warmup_steps": 2,
    "optimizer.learning_rate": 0.01,
    "data.seq_len": 48,
    "data.validation_fraction": 0.25,
    "model.num_layers": 2,
    "model.scan": True,
    "model.d_model": 32,
    "model.num_heads": 4,
    "model.max_seq_len": 64,
    "checkpoint.every": 12,
    "evaluation.num_examples": 8,
    "output.tied": False,
}
# What BERT, and GPT-2, have that the models here do not begin with.
BERT = {
    "model.norm_position": "post",
    "model.embedding_norm": True,
    "model.position_embedding": "learned",
    "model.activation": "gelu_exact",
    "model.num_token_types": 2,
    "model.norm_eps": 1e-12,
    "output.bias": True,
}
GPT2 = {"model.position_embedding": "learned", "model.activation": "gelu", "output.tied": True}
TRAINED = {f"{weighting}, softmax" for weighting in SHOWN_WEIGHTINGS}
TRAINED |= {f"softmax, {head}" for head in SHOWN_HEADS} | {"as BERT", "as GPT-2"}
POSITIONS = ("rotary", "sinusoidal", "alibi", "relative", "none")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn")
PLACES = ("Rome", "Oslo", "Lima", "Cairo")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model: its config keys, and the file of examples that it learns from."""

    keys: dict[str, Any]
    file: str


KINDS = {
    "decoder": Kind({}, "text-*.txt"),
    "classifier": Kind(
        {"task.name": "classification", "model.architecture": "encoder"}, "reviews.csv"
    ),
    "tagger": Kind(
        {
            "task.name": "token_classification",
            "task.text": ("tokens",),
            "task.label": "tags",
            "model.architecture": "encoder",
        },
        "tags.conll",
    ),
    "qa": Kind(
        {
            "task.name": "extractive_qa",
            "task.text": ("question", "context"),
            "task.label": "answers",
            "task.doc_stride": 8,
            "model.architecture": "encoder",
        },
        "questions.jsonl",
    ),
    "encoder-decoder": Kind(
        {"objective": "span", "model.architecture": "encoder_decoder"}, "text-*.txt"
    ),
}


def write_examples(folder: pathlib.Path) -> None:
    """A few dozen labelled examples of each kind, and a text."""
    pairs = list(itertools.product(NAMES, PLACES))
    good, bad = ("fine", "lovely", "great"), ("dull", "awful", "poor")
    labelled = [(word, "pos") for word in good] + [(word, "neg") for word in bad]
    reviews = [f"a {word} film by {name},{label}" for name in NAMES for word, label in labelled]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(reviews) + "\n")
    tags = [f"{name} B-PER\nwent O\nto O\n{place} B-LOC\n" for name, place in pairs]
    (folder / "tags.conll").write_text("\n".join(tags))
    lines = []
    for name, place in pairs:
        context = f"{name} went to {place} by train."
        answer = {"text": [place], "answer_start": [context.index(place)]}
        lines.append({"question": "Where?", "context": context, "answers": answer})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for number, (name, place) in enumerate(pairs):
        told = [f"{name} went to {place}, and {other} stayed." for other in NAMES]
        (folder / f"text-{number}.txt").write_text(" ".join(told))


def config_of(kind: str, folder: pathlib.Path, **keys: Any) -> Config:
    """The config of a small model of a kind."""
    config = default.get_config()
    source = {"data.source": f"files:{folder / KINDS[kind].file}"}
    config.update_from_flattened_dict({**SMALL, **KINDS[kind].keys, **source, **keys})
    return config


def cases() -> Iterator[tuple[str, str, dict[str, Any], tuple[str, ...]]]:
    """Kind, what is other than usual, its config keys, and the formats."""
    shown = [(weighting, "softmax") for weighting in SHOWN_WEIGHTINGS]
    shown += [("softmax", head) for head in SHOWN_HEADS[1:]]
    for kind, (weighting, head) in itertools.product(KINDS, shown):
        keys = {"attention.weighting": weighting, "output.head": head}
        yield kind, f"{weighting}, {head}", keys, FORMATS
    yield "decoder", "as GPT-2", GPT2, ("hf",)
    yield "classifier", "as BERT", BERT | {"task.pooling": "pooler_tanh"}, ("hf",)
    yield "tagger", "as BERT", BERT, ("hf",)
    yield "qa", "as BERT", BERT | {"output.bias": None}, ("hf",)
    for weighting in sorted(WEIGHTINGS.keys() - set(SHOWN_WEIGHTINGS)):
        yield "decoder", f"{weighting}, softmax", {"attention.weighting": weighting}, FORMATS
    for mechanism in sorted(ATTENTIONS.keys() - {"scores"}):
        yield "decoder", f"{mechanism}, softmax", {"attention.mechanism": mechanism}, FORMATS
    for head in sorted(OUTPUTS.keys() - {*SHOWN_HEADS, "squared", "crf"}):
        yield "decoder", f"softmax, {head}", {"output.head": head}, FORMATS
    yield "tagger", "softmax, crf", {"output.head": "crf"}, FORMATS
    for positions in POSITIONS:
        keys = {"model.position_embedding": positions}
        yield "decoder", f"softmax, softmax; positions {positions}", keys, FORMATS


def measure(
    kind: str,
    keys: dict[str, Any],
    formats: tuple[str, ...],
    examples: pathlib.Path,
    trained: bool = True,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each format the certificate of a model, or why there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        try:
            config = config_of(kind, examples, **keys)
            if trained:
                train(config, epath.Path(folder / "run"))
                run = restore(epath.Path(folder / "run"))
            else:
                run = with_random_weights(config)
        except UserError as error:
            yield from ((name, {"refused": f"training: {error}"}) for name in formats)
            return
        for name in formats:
            try:
                export(run, name, str(folder / name))
                yield name, json.loads((folder / name / "certificate.json").read_text())
            except UserError as error:
                yield name, {"refused": str(error)}


def with_random_weights(config: Config) -> Restored:
    """An untrained run whose every parameter matters."""
    corpus, draw = prepare_corpus(config), np.random.default_rng(0)
    program = corpus_program(config, corpus)

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        around = 1.0 if "scale" in path_name(path) else 0.0
        return np.asarray(around + 0.2 * draw.standard_normal(leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(one, program.abstract_params)
    return Restored(config, corpus.tokenizer, program, params, 1)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each model: largest differences, and the least agreement of the argmax."""
    formats = (*FORMATS, "hf")
    lines = [f"| model | attention, head | {' | '.join(formats)} | same argmax |"]
    lines.append("| --- " * (len(formats) + 3) + "|")
    for (kind, name), group in itertools.groupby(rows, lambda row: (row["kind"], row["name"])):
        found = {row["format"]: row for row in group}
        cells = ["-" if f not in found else _cell(found[f]) for f in formats]
        shares = [row["argmax_agreement"] for row in found.values() if "passed" in row]
        share = f"{100 * min(shares):.2f} %" if shares else "-"
        lines.append(f"| {kind} | {name} | {' | '.join(cells)} | {share} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "refused"
    return f"{row['max_difference']:.1e}" + ("" if row["passed"] else " (not certified)")


def main() -> None:
    """Measures what is missing, and writes after each model."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    at = commit()  # before the results, a file of the project, are written
    known = {(row["kind"], row["name"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        write_examples(pathlib.Path(folder))
        for kind, name, keys, formats in cases():
            if (kind, name) in known:
                continue
            trained = name in TRAINED
            for form, found in measure(kind, keys, formats, pathlib.Path(folder), trained):
                kept = {k: v for k, v in found.items() if k not in ("source", "hash", "versions")}
                about = {"kind": kind, "name": name, "trained": trained, "commit": at}
                rows.append({**about, **kept, "format": form})
                said = kept.get("max_difference", kept.get("refused"))
                print(f"{kind}, {name}: {form} {said}", flush=True)
            write_results(rows)


def write_results(rows: list[dict[str, Any]]) -> None:
    """Writes the rows, and their table with the reasons of what was refused."""
    told = {"versions": versions(), "device": jax.devices()[0].device_kind}
    write_json(RESULTS, {**told, "rows": rows})
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    about = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    runtimes = sorted({f"{r['runtime']} {r['version']}" for r in rows if "passed" in r})
    text = (
        "Largest differences of log-probabilities (of sparse heads, of probabilities) between the "
        f"run and each runtime. Commits {commits}; {about}; {', '.join(runtimes)}.\n\n"
    )
    reasons = [
        f"- {r['kind']}, {r['name']}, {r['format']}: {r['refused']}" for r in rows if "refused" in r
    ]
    refused = "\nRefused:\n\n" + "\n".join(reasons) + "\n" if reasons else ""
    RESULTS.with_suffix(".md").write_text(text + table(rows) + refused)


if __name__ == "__main__":
    main()
