"""The harness is told what we compute ourselves."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from test_evaluate_prompts import run_of

from lm.config import override
from lm.errors import UserError
from lm.evaluation.prompting.evaluate_prompts import evaluate_prompts
from lm.evaluation.prompting.gen_kwargs import read_gen_kwargs
from lm.evaluation.prompting.harness import Laboratory
from lm.generation.sample import SamplingParams
from lm.model.transformer import Batch


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
    assert end not in said and text == run.tokenizer.decode(said, final=False)
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


def test_an_empty_text_has_a_rolling_likelihood_of_one(run):
    model = Laboratory(run)
    assert model.loglikelihood_rolling(asked("loglikelihood_rolling", ("",))) == [0.0]
    found = model.loglikelihood_rolling(asked("loglikelihood_rolling", ("",), ("ab",)))
    assert found[0] == 0.0 and found[1] < 0


def written(run, settings, contexts=("ab",), **changed):
    """What the harness is given for each context; in batches of 8."""
    config = override(run.config, changed)
    laboratory = Laboratory(dataclasses.replace(run, config=config))
    return laboratory.generate_until(asked("generate_until", *((c, settings) for c in contexts)))


DRAWN = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6}


def test_repeats_draw_apart_and_no_text_depends_on_its_batch(run):
    texts = written(run, DRAWN, ["ab"] * 8, batch_size=4)
    assert len(set(texts)) == 8
    assert written(run, DRAWN, ["xyz", "ab", "c", "ab"])[1::2] == texts[:2]
    assert written(run, DRAWN | {"seed": 1}, ["ab"] * 4)[0] != texts[0]


def test_an_answer_cut_within_a_character_ends_before_it(run, monkeypatch):
    tokens = np.array(list("é🙂".encode())[:-1])
    monkeypatch.setattr(
        "lm.evaluation.prompting.harness.generate", lambda *_, **__: iter(tokens[:, None])
    )
    assert written(run, {"max_gen_toks": 5}) == ["é"]


def test_a_context_keeps_its_end_and_a_half_where_the_harness_names_no_length(run, monkeypatch):
    def generate(model, params, prompts, *, max_new_tokens, **_):
        seen.append((max_new_tokens, [len(prompt) for prompt in prompts]))
        assert all(prompt[-1] == ord("z") for prompt in prompts)
        return iter([])

    seen = []
    monkeypatch.setattr("lm.evaluation.prompting.harness.generate", generate)
    contexts = ["x" * 99 + "z", "yz"]
    assert written(run, {}, contexts) == ["", ""]
    written(run, {"max_tokens": 62}, contexts)
    assert seen == [(31, [3, 33]), (62, [2, 2])]


def test_contexts_of_one_length_are_continued_together_and_answered_in_their_order(
    run, monkeypatch
):
    def generate(model, params, prompts, **_):
        lengths.append([len(prompt) for prompt in prompts])
        return iter([np.array([prompt[-1] for prompt in prompts])])

    lengths = []
    monkeypatch.setattr("lm.evaluation.prompting.harness.generate", generate)
    contexts = ["x" * size + letter for size, letter in ((9, "a"), (1, "b"), (9, "c"), (1, "d"))]
    assert written(run, {}, contexts, batch_size=2) == ["a", "b", "c", "d"]
    assert lengths == [[3, 3], [11, 11]]


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({}, SamplingParams(0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, SamplingParams(0.0)),
        (
            {"temperature": 0.7, "top_k": 3, "top_p": 0.5, "min_p": 0.1},
            SamplingParams(0.7, 3, 0.5, 0.1),
        ),
        ({"do_sample": True, "top_k": 3.0}, SamplingParams(1.0, 3)),
        ({"do_sample": True, "temperature": 0.0}, SamplingParams(0.0)),
        ({"do_sample": None, "temperature": None, "num_beams": 1}, SamplingParams(0.0)),
    ],
)
def test_draws_are_as_the_harness_reads_its_settings(given, sampling):
    assert read_gen_kwargs(given, 64).sampling == sampling


def test_lengths_and_stops_have_the_names_that_the_harness_knows():
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert read_gen_kwargs({name: 7}, 64).max_new_tokens == 7
    defaults = [read_gen_kwargs({}, positions).max_new_tokens for positions in (9, 64, 4096)]
    assert defaults == [4, 32, 256]
    for until, stops in (("x", ("x",)), (["x", "", "yy"], ("x", "yy")), ([""], ()), (None, ())):
        assert read_gen_kwargs({"until": until}, 64).stops == stops


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_beams": 4}, "num_beams = 4 is not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty = 1.2 is not supported"),
        ({"typical_p": 0.9}, "typical_p = 0.9 is not supported; leave it out, or use until, max_"),
        ({"temperature": float("nan")}, "temperature = nan must be"),
        ({"temperature": float("inf")}, "temperature = inf must be"),
        ({"temperature": "hot"}, "cannot be read"),
        ({"top_k": 2.5}, "top_k = 2.5 must be"),
        ({"top_k": float("inf")}, "top_k = inf must be"),
        ({"top_p": float("nan"), "do_sample": False}, "top_p = nan must be"),
        ({"max_gen_toks": float("inf")}, "cannot be read"),
        ({"max_gen_toks": 0}, "max_gen_toks = 0, but the model has 64 positions"),
        ({"max_new_tokens": 64}, "max_gen_toks = 64, but .* use 1 to 63"),
        ({"until": [3]}, r"until = \[3\] must be texts"),
        ({"do_sample": "no"}, "do_sample = 'no' true or false"),
        ({"seed": -1}, "seed = -1 must be"),
    ],
)
def test_a_generation_setting_that_cannot_be_met_is_refused_by_name(given, named):
    with pytest.raises(UserError, match=named) as error:
        read_gen_kwargs(given, 64)
    assert "\n" not in str(error.value)


def test_a_conversation_of_the_harness_is_asked_as_it_was_trained(run, log_probs):
    model, chat = Laboratory(run), run.chat
    talk = [{"role": "user", "content": "hi"}]
    context = model.apply_chat_template(talk)
    tokens = chat.encode_prompt(talk)
    assert bytes(tokens[1:].tolist()) == b"### user:\nhi\n\n### assistant:\n" and tokens[0] == 255
    words = log_probs([*tokens, *b"no"])
    ((nats, _),) = model.loglikelihood(asked("loglikelihood", (context, "no")))
    size = len(tokens)
    np.testing.assert_allclose(nats, words[size - 1, ord("n")] + words[size, ord("o")], rtol=1e-5)
    begun = model.apply_chat_template([*talk, {"role": "assistant", "content": "n"}], False)
    ((rest, _),) = model.loglikelihood(asked("loglikelihood", (begun, "o")))
    np.testing.assert_allclose(rest, words[size, ord("o")], rtol=1e-5)
    # After an answer stands what closes it, which is END here and has no name.
    talk += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    (prompt,) = model._prompts([model.apply_chat_template(talk)], 64)
    assert prompt.tolist() == chat.encode_prompt(talk).tolist() and prompt.tolist().count(255) == 2


def test_the_template_of_the_harness_is_the_runs_or_one_that_is_named(run):
    model = Laboratory(run)
    name = model.tokenizer_name
    assert model.chat_template(False) == "" and model.chat_template(True) == "plain"
    assert model.chat_template("chatml") == "chatml" and model.tokenizer_name != name
    assert model.apply_chat_template([]).startswith("<|im_start|>assistant")
    with pytest.raises(UserError, match="no template 'alpaca'; use plain, chatml"):
        model.chat_template("alpaca")


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
    assert found["results"]["python_pairs"]["acc,none"] == evaluate_prompts(run)["eval/accuracy"]
