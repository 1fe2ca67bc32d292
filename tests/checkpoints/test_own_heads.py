"""A checkpoint that was fine-tuned elsewhere brings its own head, where its labels agree."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from test_export_heads import LABELS, POOLINGS, log_softmax, rows_of, slow

from configs import default
from lm.checkpoints.export.hf_folder import export_hf
from lm.checkpoints.hf import open_checkpoint, with_checkpoint_model
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.pretrained import open_pretrained
from lm.config import override
from lm.data.objectives import Objective
from lm.errors import UserError
from lm.evaluation.predict import predict
from lm.tasks.layout import Layout
from lm.training.program import build_program
from tests.checkpoints.hf_checkpoints import CASES
from tests.small_tokenizers import byte_level, folder_of

KINDS = {
    "classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "extractive_qa": "ForQuestionAnswering",
}


def saved(name, task, folder, labels=LABELS):
    """A model of transformers for a task, all of whose parameters matter, and where it lies."""
    base, settings = CASES[name]
    head = base.replace("LMHeadModel", "").partition("For")[0].removesuffix("Model") + KINDS[task]
    kind = getattr(transformers, head)
    names = {} if task == "extractive_qa" else {"id2label": dict(enumerate(labels))}
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings | {"vocab_size": 256, "pad_token_id": 1}, **names))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    return model


def config_of(folder, task, cache, **settings):
    config = default.get_config()
    own = {
        "task.name": task,
        "output.tied": False,
        "data.seq_len": 16,
        "init_from": f"hf:{folder}",
        "cache_dir": str(cache),
        "mesh.data": 1,
    }
    return with_checkpoint_model(override(config, own | settings))


def settings_of(name, task):
    if task == "extractive_qa":
        return {"task.text": ("question", "context"), "task.doc_stride": 2}
    if task == "token_classification":
        return {"output.bias": True}
    biased = {"output.bias": True} if name in POOLINGS else {}
    return {"task.pooling": POOLINGS.get(name, "last")} | biased


SAME = [
    ("bert", "classification"),
    ("bert", "token_classification"),
    ("bert", "extractive_qa"),
    ("gpt2", "classification"),
    *(slow(name, "classification") for name in (*POOLINGS, "llama") if name != "bert"),
    *(slow(name, "token_classification") for name in ("distilbert", "roberta", "llama")),
    *(slow(name, "extractive_qa") for name in ("distilbert", "electra", "llama")),
]


@pytest.mark.parametrize(("name", "task"), SAME)
def test_what_transformers_fine_tuned_says_the_same_here(name, task, tmp_path, cache):
    theirs = saved(name, task, tmp_path / "own")
    run = open_pretrained(config_of(tmp_path / "own", task, cache, **settings_of(name, task)))
    batch, places = rows_of(task)
    outputs = run.program.model.apply({"params": run.params}, batch, method="predictions")
    ours = np.asarray(outputs["log_probs"])
    ids, real = (torch.as_tensor(np.asarray(x, np.int64)) for x in (batch.inputs, batch.segments))
    with torch.no_grad():
        if task == "extractive_qa":
            found = theirs(input_ids=ids, attention_mask=real)
            both = torch.stack([found.start_logits, found.end_logits], 1)
            wanted = log_softmax(both.masked_fill(real[:, None] == 0, -1e4))
        elif task == "token_classification":
            found = theirs(input_ids=ids, attention_mask=real).logits
            wanted = np.take_along_axis(log_softmax(found), places[:, :, None], 1)
        else:  # a row at a time, as these tokens have no padding
            rows = [theirs(ids[i : i + 1, : int(real[i].sum())]).logits for i in range(2)]
            wanted = log_softmax(torch.stack(rows))
    seen = wanted > -1e3
    np.testing.assert_allclose(ours[seen], wanted[seen], rtol=0, atol=2e-5)
    assert run.task_layout[1] == (() if task == "extractive_qa" else LABELS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "bert"
    saved("bert", "classification", folder, ("neg", "pos"))
    return folder


def origin_of(config, labels):
    """The line that says where a run begins, of one with these labels, and its parameters."""
    layout = Layout(length=16, start=255, end=255, num_classes=len(labels), labels=labels)
    program = build_program(config, 256, layout=layout)
    return pretrained_params(program, config, jax.random.key(0))


POOLED = {"task.pooling": "pooler_tanh", "output.bias": True}


def test_a_run_with_the_same_labels_begins_with_the_checkpoints_head(bert, cache):
    params, line = origin_of(config_of(bert, "classification", cache, **POOLED), ("neg", "pos"))
    tensors = open_checkpoint(f"hf:{bert}").tensors
    np.testing.assert_array_equal(params["head"]["table"], tensors["classifier.weight"][:, :])
    assert "fresh" not in line and "not taken" not in line


ANEW = {
    "other labels": (("bad", "good"), {}, "its labels are neg, pos, and here bad, good"),
    "more labels": (("a", "b", "c"), {}, "its labels are neg, pos, and here a, b, c"),
    "another order": (("pos", "neg"), {}, r"set config.task.labels=\('neg', 'pos'\) to take it"),
    "another function": (("neg", "pos"), {"task.pooling": "mean"}, "train with 'pooler_tanh'"),
    "no bias": (("neg", "pos"), {"output.bias": None}, "it has classifier.bias; set config.output"),
}


@pytest.mark.parametrize("name", ANEW)
def test_a_head_that_is_not_the_tasks_is_said_to_start_anew(name, bert, cache):
    labels, settings, reason = ANEW[name]
    config = config_of(bert, "classification", cache, **POOLED | settings)
    _, line = origin_of(config, labels)
    assert "its head is not taken: " in line and "fresh: head" in line
    assert re.search(reason, line)


def changed(folder, to, **settings):
    """A copy of a folder with other settings; None leaves one out."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    theirs = json.loads((folder / "config.json").read_text()) | settings
    theirs = {key: value for key, value in theirs.items() if value is not None}
    (to / "config.json").write_text(json.dumps(theirs))
    return to


def test_a_config_that_says_two_labels_beside_weights_of_three_is_named(tmp_path, cache):
    saved("bert", "classification", tmp_path / "own")
    folder = changed(tmp_path / "own", tmp_path / "two", id2label=None, label2id=None)
    said = "config.json says 2 labels, but classifier.weight has 3; mend its id2label"
    config = config_of(folder, "classification", cache, **POOLED)
    assert said in origin_of(config, LABELS)[1]
    with pytest.raises(UserError, match=said):
        open_pretrained(config)


def test_labels_without_names_are_those_of_their_numbers(bert, tmp_path, cache):
    names = {str(i): f"LABEL_{i}" for i in range(2)}
    folder = changed(bert, tmp_path / "unnamed", id2label=names)
    config = config_of(folder, "classification", cache, **POOLED)
    assert "not taken" not in origin_of(config, ("0", "1"))[1]
    assert "no names but LABEL_0" in origin_of(config, ("neg", "pos"))[1]
    broken = changed(bert, tmp_path / "broken", id2label={"one": "neg", "2": "pos"})
    with pytest.raises(UserError, match=r"broken/config.json has an id2label that does not name"):
        open_pretrained(config_of(broken, "classification", cache, **POOLED))


def test_a_checkpoint_without_a_head_for_the_task_predicts_nothing(tmp_path, cache):
    base, settings = CASES["bert"]
    kind = getattr(transformers, base)
    kind(kind.config_class(**settings | {"vocab_size": 256})).save_pretrained(tmp_path / "mlm")
    with pytest.raises(UserError, match=r"has not learned config.task.name = 'classification'"):
        open_pretrained(config_of(tmp_path / "mlm", "classification", cache, **POOLED))


def test_a_decoders_own_head_reads_the_tokens_that_transformers_gives_it(tmp_path, cache):
    model = saved("gpt2", "classification", tmp_path)
    end = "\u00ff"  # stands for the byte 0xFF, which no text has
    folder_of(tmp_path, byte_level(end, words=()), eos_token=end)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json")
    )
    (tmp_path / "a.csv").write_text("text,label\ngood,O\nbad,O\n")
    run = open_pretrained(config_of(tmp_path, "classification", cache, **{"task.pooling": "last"}))
    said = predict(run, [str(tmp_path / "a.csv")]).predictions
    assert not any(run.around[:4])
    for text, each in zip(("good", "bad"), said, strict=True):
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt"))
        wanted = torch.softmax(found.logits[0], 0).numpy()
        assert each["predicted"] == LABELS[wanted.argmax()]
        np.testing.assert_allclose(each["confidence"], wanted.max(), atol=2e-5)


def test_a_checkpoint_predicts_a_file_without_any_training(bert, tmp_path, cache):
    (tmp_path / "a.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    run = open_pretrained(config_of(bert, "classification", cache, **POOLED))
    found = predict(run, [str(tmp_path / "a.csv")])
    assert {each["predicted"] for each in found.predictions} <= {"neg", "pos"}
    assert found.metrics["eval/examples"] == 2


def test_a_checkpoints_labels_are_named_as_examples_name_theirs(bert, tmp_path, cache):
    names = {"id2label": {"0": "False", "1": "True"}, "label2id": {"False": 0, "True": 1}}
    folder = changed(bert, tmp_path / "truth", **names)
    config = config_of(folder, "classification", cache, **POOLED)
    assert "not taken" not in origin_of(config, ("false", "true"))[1]
    (tmp_path / "a.jsonl").write_text('{"text": "good", "label": true}\n')
    run = open_pretrained(config)
    assert predict(run, [str(tmp_path / "a.jsonl")]).labelled[0]["label"] == "true"


def test_a_head_that_was_not_trained_here_is_written_with_its_labels(bert, tmp_path, cache):
    run = open_pretrained(config_of(bert, "classification", cache, **POOLED))
    assert "BertForSequenceClassification" in export_hf(run, tmp_path / "out")
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert found.config.id2label == {0: "neg", 1: "pos"}
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(bert)
    assert torch.equal(found.classifier.weight, theirs.classifier.weight)


def test_a_model_that_is_asked_in_words_has_no_rows_of_a_task(bert, cache):
    run = open_pretrained(config_of(bert, "classification", cache, **POOLED))
    words = Objective(run.tokenizer, 16)
    asked = override(run.config, {"prompt.source": "files:a.csv"})
    program = dataclasses.replace(run.program, objective=words)
    with pytest.raises(UserError, match=r"files:a.csv' asks a language model in words"):
        predict(dataclasses.replace(run, config=asked, program=program), ["a.csv"])
