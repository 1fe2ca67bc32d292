"""Scores are the model's own log-probabilities; answers and reports follow from them."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from configs import default
from lm.checkpoints.restored import Restored
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.prompting.evaluate_prompts import evaluate_prompts
from lm.evaluation.prompting.examples import read_examples
from lm.evaluation.prompting.query_encoder import query_encoder
from lm.evaluation.prompting.template import Query
from lm.evaluation.scoring import score_rows
from lm.model.transformer import Batch
from lm.training.program import build_program
from lm.training.validate import check

WORDS = (" bad", " good!")
ARCHITECTURES = {"decoder": "prefix", "encoder": "masked", "encoder_decoder": "span"}


def run_of(architecture="decoder", **settings):
    """A model with large random weights, as if it had been trained."""
    config = config_of(architecture, **settings)
    program = build_program(config, 256)
    return Restored(
        config, ByteTokenizer(), program, program.init_state(jax.random.key(1)).params, 0
    )


def config_of(architecture="decoder", **settings):
    config = default.get_config()
    config.batch_size = 8
    config.data.seq_len = 64
    config.mesh.data = 1
    config.objective = ARCHITECTURES[architecture]
    config.corruption.mean_span_length = 20.0 if architecture == "encoder_decoder" else None
    config.model.update(
        architecture=architecture,
        num_layers=1,
        d_model=16,
        num_heads=2,
        max_seq_len=64,
        init_std=0.5,
    )
    config.update_from_flattened_dict(settings)
    return config


def plainly(run, rows):
    """Log-probabilities of all words at the rows' places, [T, V] each: one batch, one length."""

    def padded(rows):
        tokens = np.array([np.pad(row, (0, 64 - len(row))) for row in rows], np.int32)
        sizes = np.array([len(row) for row in rows])
        places = np.broadcast_to(np.arange(64), tokens.shape)
        return tokens, (places < sizes[:, None]).astype(np.int32), places

    inputs, segments, places = padded([row.inputs for row in rows])
    batch = Batch(inputs, inputs, segments, segments, places)
    if rows[0].prefix:
        batch = batch.replace(prefix=places < np.array([[row.prefix] for row in rows]))
    if rows[0].encoder_inputs is not None:
        memory = padded([row.encoder_inputs for row in rows])
        names = ("encoder_inputs", "encoder_segments", "encoder_positions")
        batch = batch.replace(**dict(zip(names, memory, strict=True)))
    apply = jax.jit(lambda params: run.program.model.apply(params, batch, method="log_probs"))
    found = np.asarray(apply({"params": run.params}), np.float64)
    return [each[row.target_positions] for each, row in zip(found, rows, strict=True)]


def totals(log_probs, rows):
    each = zip(log_probs, rows, strict=True)
    return [p[np.arange(len(row.targets)), row.targets].sum() for p, row in each]


@pytest.mark.parametrize(
    ("architecture", "devices"), [("decoder", -1), ("encoder", 1), ("encoder_decoder", 1)]
)
def test_likelihoods_are_those_of_the_models_own_log_probabilities(architecture, devices):
    run = run_of(architecture, **{"mesh.data": devices})
    queries = [Query("ab", "cd"), Query("a" * 9, "b", "c"), Query("ab", "cd"), Query("", "e" * 5)]
    rows = [
        row
        for reading in query_encoder(run.config, run.tokenizer, run.frame, run.opens)(queries)
        for row in reading.rows
    ]
    expected = plainly(run, rows)
    # The same places again, with the targets that are the likeliest.
    rows += [r._replace(targets=p.argmax(axis=1)) for r, p in zip(rows, expected, strict=True)]
    found, likeliest = score_rows(run.program, run.params, rows, 8)
    np.testing.assert_allclose(found, totals(expected * 2, rows), rtol=1e-5)
    np.testing.assert_array_equal(likeliest, [False] * 4 + [True] * 4)


@pytest.fixture
def source(tmp_path):
    """Eight questions with two words, and choices of their own."""
    lines = [
        {"text": f"word {i}", "label": "ab"[i % 2], "options": [f"x{i}", "yy", "z"]}
        for i in range(8)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"files:{tmp_path}/q.jsonl"


def test_few_shot_answers_are_calibrated_judged_and_reported(source, tmp_path):
    words = {"prompt.verbalizers": WORDS, "task.labels": ("a", "b")}
    settings = {"prompt.source": source, "prompt.template": "{text}:{answer}.", **words}
    settings |= {"prompt.num_shots": 2, "prompt.balanced": True, "prompt.shots_separator": "|"}
    settings |= {"prompt.length_normalization": "bytes", "prompt.content_free": ("N/A",)}
    run = run_of(**settings)
    found = evaluate_prompts(run, epath.Path(tmp_path / "report"))
    lines = (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert len(told) == found["eval/examples"] == 8 and found["eval/truncated"] == 0
    right = np.mean([each["predicted"] == each["label"] for each in told])
    assert found["eval/accuracy"] == right
    assert 0 <= found["eval/accuracy_low"] <= right <= found["eval/accuracy_high"] <= 1
    assert (tmp_path / "report" / "report.txt").exists()
    # The third question, by hand.
    asked = told[2]
    numbers = [int(place.split()[-1]) - 1 for place in asked["shown"]]
    assert sorted(n % 2 for n in numbers) == [0, 1] and 2 not in numbers
    shown = "".join(f"word {n}:{WORDS[n % 2]}.|" for n in numbers)
    assert asked["text"] == f"{shown}word 2:."
    asks = [Query(f"{shown}{content}:", word) for content in ("word 2", "N/A") for word in WORDS]
    rows = [
        reading.rows[0]
        for reading in query_encoder(run.config, run.tokenizer, run.frame, run.opens)(asks)
    ]
    scores = np.reshape(totals(plainly(run, rows), rows), (2, 2)) / [len(word) for word in WORDS]
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = scores[0] - scores[1]
    expected -= np.log(np.exp(expected).sum())
    np.testing.assert_allclose(list(asked["answers"].values()), expected, atol=1e-5)


def test_every_question_may_have_answers_of_its_own(source, tmp_path):
    (tmp_path / "q.jsonl").write_text(
        '{"text": "q", "options": ["x", "yy", "z"], "label": 1}\n'
        '{"text": "r", "options": ["s", "t"], "label": "t"}\n'
        '{"text": "s", "options": ["1", "0"], "label": 0}\n'
        '{"text": "t", "options": ["1", "0"], "label": "0"}\n'
    )
    settings = {"prompt.source": source, "prompt.template": "{text}{answer}"}
    run = run_of(
        "encoder", **settings, **{"task.choices": ("options",), "prompt.mlm_scoring": "token"}
    )
    assert [each.label for each in read_examples(run.config).questions] == [1, 1, 0, 1]
    assert evaluate_prompts(run)["eval/examples"] == 4


MISTAKES = {
    "config.prompt.verbalizers has 3 texts for the 2 of config.task.labels": {
        "prompt.verbalizers": ("x", "y", "z")
    },
    "must be two or more texts, all different": {"prompt.verbalizers": ("x", "x")},
    "head entmax may give all of them a probability of 0": {"output.head": "entmax"},
    "config.task.metric = 'bleu' is not one of": {"task.metric": "bleu"},
    "config.prompt.balanced = True needs labels": {
        "prompt.verbalizers": (),
        "prompt.balanced": True,
    },
    "did you mean bytes": {"prompt.length_normalization": "byte"},
    "config.prompt.num_shots = -1: must be at least 0": {"prompt.num_shots": -1},
    "must hold {answer} once": {"prompt.template": "{text}"},
    "has no column 'txt', only text, label, options": {"prompt.template": "{txt}{answer}"},
    "has the label 'b', which is none": {"task.labels": ("a", "c")},
    "there are 7 other examples to show before q.jsonl line 1": {"prompt.num_shots": 8},
    "matches no file": {"prompt.source": "files:/nowhere/*.jsonl"},
    "has the choices": {"prompt.verbalizers": (), "task.choices": ("text",)},
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_clear_line(line, source):
    settings = {"prompt.source": source, "prompt.template": "{text}{answer}"}
    settings |= {
        "task.labels": ("a", "b"),
        "prompt.verbalizers": ("x", "y"),
        "task.choices": ("options",),
    }
    config = config_of(**settings | MISTAKES[line])
    with pytest.raises(UserError) as error:
        check(config)
        evaluate_prompts(Restored(config, ByteTokenizer(), None, None, 0))
    assert line in str(error.value) and "\n" not in str(error.value)
