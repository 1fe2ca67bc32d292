"""A server says of an input what `run.py predict` says of it in a file."""

import json

import jax
import pytest

from lm.checkpoints.restored import Restored
from lm.config import override
from lm.evaluation.predict import predict
from lm.training.prepare import corpus_program, prepare_corpus
from tests.serving.served import client_of, service_of

pytest.importorskip("fastapi")

# Per task: its path, its settings, and the run's file.
KINDS = {
    "classification": ("classify", {}, "reviews.csv"),
    "regression": (
        "classify",
        {"task.label": "rating", "output.head": "squared", "output.bias": True},
        "reviews.csv",
    ),
    "multiple_choice": (
        "classify",
        {"task.text": ("question",), "task.label": "choice"},
        "rows.jsonl",
    ),
    "token_classification": (
        "tag",
        {"task.text": ("tokens",), "task.label": "tags"},
        "names.conll",
    ),
    "extractive_qa": (
        "answer",
        {
            "task.text": ("question", "context"),
            "task.label": "answers",
            "task.doc_stride": 4,
            "data.seq_len": 48,
        },
        "rows.jsonl",
    ),
}
INPUTS = {
    "classification": [{"text": "fine good 1"}, {"text": "awful"}],
    "regression": [{"text": "fine good 1"}, {"text": "awful"}],
    "multiple_choice": [{"question": "which?", "choices": ["a b", "c"]}],
    "token_classification": [{"tokens": ["we", "saw", "Ada"]}, {"tokens": ["Rome"]}],
    "extractive_qa": [{"question": "which word is first?", "context": "fine good 1"}],
}
# The same as texts or words.
SHORT = {
    "classification": ["fine good 1", "awful"],
    "regression": ["fine good 1", ["awful"]],
    "token_classification": ["we saw Ada", ["Rome"]],
    "extractive_qa": [["which word is first?", "fine good 1"]],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_input_is_predicted_as_in_a_file(kind, task_config, labelled, tmp_path):
    path, settings, file = KINDS[kind]
    known = {"task.name": kind, "data.source": f"files:{labelled}/{file}", **settings}
    config = override(task_config, known)
    corpus = prepare_corpus(config)
    program = corpus_program(config, corpus)
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(3)).all_params
    run = Restored(config, corpus.tokenizer, program, params, 12)
    written = tmp_path / "inputs.jsonl"
    written.write_text("\n".join(map(json.dumps, INPUTS[kind])))
    expected = predict(run, [str(written)]).predictions
    with client_of(service_of(run)) as client:
        for inputs in (INPUTS[kind], SHORT.get(kind, INPUTS[kind])):
            body = {"model": "small", "inputs": inputs}
            response = client.post(f"/v1/{path}", json=body)
            assert response.status_code == 200, response.text
            for found, wanted in zip(response.json()["data"], expected, strict=True):
                for name in found.keys() & wanted.keys():
                    assert found[name] == pytest.approx(wanted[name], abs=1e-5), name
        wrong = client.post(f"/v1/{path}", json={"model": "small", "inputs": [{"other": "x"}]})
        assert wrong.status_code == 400 and "input 1" in wrong.json()["error"]["message"]
        refused = client.post("/v1/completions", json={"model": "small", "prompt": "x"})
        assert refused.status_code == 404
        assert client.post("/v1/embeddings", json={"model": "small", "input": "x"}).is_success
