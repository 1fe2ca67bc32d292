"""The harness is told what we compute ourselves."""

import json

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from test_prompt_ask import run_of

from lm.model import Batch
from lm.prompt.ask import ask
from lm.prompt.harness import Laboratory


def asked(kind, *arguments):
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


@pytest.fixture(scope="module")
def run():
    return run_of(objective="causal")


@pytest.fixture(scope="module")
def log_probs(run):
    """Of a row of tokens, all log-probabilities [L, V]; rows are padded to 64."""
    apply = jax.jit(
        lambda batch: run.program.model.apply({"params": run.params}, batch, method="log_probs")
    )

    def of(tokens):
        inputs = np.pad(tokens, (0, 64 - len(tokens)))[None].astype(np.int32)
        places = np.arange(64)[None]
        segments = (places < len(tokens)).astype(np.int32)
        return np.asarray(apply(Batch(inputs, inputs, segments, segments, places)), np.float64)[0]

    return of


def test_likelihoods_and_greedy_continuations_are_our_own(run, log_probs):
    model, end = Laboratory(run), run.tokenizer.end
    context, said = "ab", []
    tokens = [end, *context.encode()]
    for _ in range(5):
        tokens.append(int(log_probs(tokens)[len(tokens) - 1].argmax()))
        said.append(tokens[-1])
    settings = {"until": ["never said"], "max_gen_toks": 5}
    (text,) = model.generate_until(asked("generate_until", (context, settings)))
    assert end not in said and text == run.tokenizer.decode(said)
    stop = text[2]
    settings = {"until": [stop], "max_gen_toks": 5}
    assert model.generate_until(asked("generate_until", (context, settings))) == [
        text.split(stop)[0]
    ]
    words = log_probs([end, *b"abcd"])
    ((nats, greedy),) = model.loglikelihood(asked("loglikelihood", ("ab", "cd")))
    np.testing.assert_allclose(nats, words[2, ord("c")] + words[3, ord("d")], rtol=1e-5)
    assert not greedy


def test_rolling_likelihoods_predict_every_token_once(run, log_probs):
    text = "0123456789" * 10
    tokens = [run.tokenizer.end, *text.encode()]
    windows = [(tokens[:64], tokens[1:65]), (tokens[36:100], tokens[65:])]
    expected = sum(
        log_probs(seen)[np.arange(64 - len(told), 64), told].sum() for seen, told in windows
    )
    (found,) = Laboratory(run).loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_the_harness_finds_the_accuracy_that_we_find(tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    settings = {"prompt.source": "files:configs/python.jsonl", "prompt.template": "{text}{answer}"}
    run = run_of(objective="causal", **settings)
    (tmp_path / "python.yaml").write_text(
        json.dumps(
            {
                "task": "python_pairs",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": "configs/python.jsonl"}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{text}}",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(Laboratory(run), tasks=["python_pairs"], task_manager=tasks)
    assert found["results"]["python_pairs"]["acc,none"] == ask(run)["eval/accuracy"]
