"""Explanations obey their laws, and say of a model what an independent recomputation says."""

import json

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from etils import epath

from lm.attention import ATTENTIONS
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.attention_weights import attention_weights
from lm.evaluation.explanation import attribution, explain
from lm.evaluation.explanation.attribution import (
    integrated_gradients,
    leave_out,
    token_parts,
    word_parts,
)
from lm.evaluation.explanation.decision import decision_of
from lm.evaluation.explanation.heads import (
    entropies,
    head_statistics,
    received,
    rollout,
    support_sizes,
)
from lm.evaluation.explanation.lens import hidden_states, logit_lens, top_tokens
from lm.evaluation.explanation.page import make_page
from lm.evaluation.explanation.subject import read_subject
from lm.experiment.checkpoint_commands import run_explain
from lm.generation import prompt_batch
from lm.training.prepare import corpus_program, prepare_corpus, shared_program

TEXT = "a big cat"


def opened(base_config, **settings):
    """A decoder of bytes with noisy weights."""
    config = override(base_config, {"model.max_seq_len": 32, "model.init_std": 0.3, **settings})
    program = shared_program(config, 256, tokenizer=ByteTokenizer())
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(1)).all_params
    return Restored(config, ByteTokenizer(), program, params, 1)


def parts(run, text=TEXT):
    subject = read_subject(run, [text])
    return subject, decision_of(run.program.model, run.params)


def next_log_probs(run, ids):
    """The next token's, of the plain model and a row of these ids alone."""
    batch = prompt_batch(np.array([ids]), np.arange(len(ids))[None])
    found = run.program.model.apply({"params": run.params}, batch, method="log_probs")
    return np.asarray(found)[0, -1]


VARIANTS = {
    "sparsemax": {"attention.weighting": "sparsemax"},
    "sigmoid, rotary, two layers": {
        "attention.weighting": "sigmoid",
        "model.position_embedding": "rotary",
        "model.num_layers": 2,
    },
    "entmax head": {"output.head": "entmax", "attention.weighting": "entmax15"},
    "unrolled": {"model.num_layers": 2, "model.scan": False, "model.norm_position": "sandwich"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, base_config):
    return opened(base_config, **VARIANTS[request.param])


@pytest.fixture(scope="module")
def plain(base_config):
    return opened(base_config)


def test_integrated_gradients_sum_to_the_difference_from_the_baseline(variant):
    subject, decision = parts(variant)
    row = subject.batch(np.ones((1, len(subject.ids)), bool))
    outputs = decision.outputs(row)
    target = int(jnp.argmax(outputs))
    found = integrated_gradients(decision, subject, target)
    np.testing.assert_allclose(found.score, decision.scores(outputs)[0, target], rtol=1e-5)
    assert abs(found.score - found.baseline) > 1e-3
    assert abs(found.residual) <= 0.01 * abs(found.score - found.baseline)
    assert found.tokens[0] == 0  # the token that opens the text stands in the baseline too


def test_integrated_gradients_of_a_linear_score_are_its_terms(plain, monkeypatch):
    subject, decision = parts(plain)
    slopes = np.random.default_rng(0).normal(size=(len(subject.ids), 32))

    def linear(decision, batch, vectors, target):
        return jnp.sum(vectors * slopes, axis=(1, 2))

    monkeypatch.setattr(attribution, "_score", linear)
    monkeypatch.setattr(
        attribution,
        "_gradients",
        lambda *given: jax.grad(lambda x: linear(*given[:2], x, 0).sum())(given[2]),
    )
    found = integrated_gradients(decision, subject, 0)
    terms = (np.asarray(decision.params["embedding"])[subject.ids] * slopes).sum(axis=1)
    np.testing.assert_allclose(found.tokens[1:], terms[1:], rtol=1e-4, atol=1e-6)
    assert found.points == attribution.POINTS


def test_the_lens_at_the_last_layer_is_the_models_own_distribution(variant):
    subject, decision = parts(variant)
    states = hidden_states(decision, subject)
    own = next_log_probs(variant, subject.ids)
    lens = logit_lens(decision, subject, states)
    assert len(lens) == variant.config.model.num_layers + 1
    np.testing.assert_allclose(np.exp(lens[-1]), np.exp(own), atol=2e-5)
    assert np.abs(np.exp(lens[0]) - np.exp(own)).max() > 1e-3
    tokens, p = top_tokens(decision, subject, states)
    assert tokens[-1, -1] == np.argmax(own)
    np.testing.assert_allclose(p[-1, -1], np.exp(own).max(), atol=2e-5)


def test_a_token_that_is_left_out_is_as_if_it_had_never_been_there(base_config):
    """Where positions mean nothing, the rest of the row alone gives the same."""
    for mechanism in ("scores", "linear"):
        settings = {"model.position_embedding": "none", "attention.mechanism": mechanism}
        run = opened(base_config, **settings)
        subject, decision = parts(run)
        found = leave_out(decision, subject, token_parts(subject), ord("e"))
        for place in (1, 4, len(found)):
            alone = next_log_probs(run, np.delete(subject.ids, place))[ord("e")]
            np.testing.assert_allclose(found[place - 1], alone, atol=5e-5, err_msg=mechanism)


def test_what_is_left_out_leaves_the_positions_of_others_alone(plain):
    subject, decision = parts(plain)
    batch = subject.batch(~word_parts(subject)[1:2])
    assert subject.word_texts == ("a", " big", " cat")
    np.testing.assert_array_equal(batch.positions[0, :4], [0, 1, 6, 7])
    assert batch.segments.sum() == len(subject.ids) - 4
    assert int(batch.target_positions[0, 0]) == batch.segments.sum() - 1
    with_mask = leave_out(decision, subject, token_parts(subject)[:1], 7, ByteTokenizer.mask)
    ids = [*subject.ids[:1], ByteTokenizer.mask, *subject.ids[2:]]
    own = decision.outputs(prompt_batch(jnp.array([ids]), jnp.arange(len(ids))[None]).replace(
        target_positions=jnp.array([[len(ids) - 1]])))  # fmt: skip
    np.testing.assert_allclose(with_mask[0], own[0, 7], atol=2e-5)


def test_rows_of_rollout_sum_to_one_and_are_the_product_of_layers():
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(3, 2, 5, 5)) * np.tri(5)
    weights[1, :, 0] = 0  # a query that sees nothing
    found = rollout(weights)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-12)
    assert not np.triu(found, 1).any()
    expected = np.eye(5)
    for layer in weights:
        mean = np.abs(layer).mean(axis=0)
        for query, row in enumerate(mean):
            mean[query] = row / row.sum() if row.sum() else np.eye(5)[query]
        expected = (0.5 * mean + 0.5 * np.eye(5)) @ expected
    np.testing.assert_allclose(found[-1], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "relu"])
def test_support_sizes_are_counts_and_entropies_those_of_the_weights(base_config, name):
    run = opened(base_config, **{"attention.weighting": name})
    subject, decision = parts(run)
    batch = subject.batch(np.ones((1, len(subject.ids)), bool))
    weights = np.asarray(attention_weights(decision.model, run.params, batch)["attention"])[:, 0]
    sizes = support_sizes(weights)
    length = len(subject.ids)
    visible = np.arange(1, length + 1)
    for query in range(length):
        counted = [int((head[query] != 0).sum()) for head in weights[0]]
        assert sizes[0, :, query].tolist() == counted
        row = np.abs(weights[0, 0, query].astype(np.float64))
        p = row[row > 0] / row.sum()
        np.testing.assert_allclose(entropies(weights)[0, 0, query], -(p * np.log(p)).sum())
    assert (sizes <= visible).all()
    assert (sizes == visible).all() == (name == "softmax")
    (layer,) = head_statistics(weights, causal=True)
    assert layer[2]["support_max"] == sizes[0, 2].max()
    np.testing.assert_allclose(layer[2]["support_mean"], sizes[0, 2].mean())


def test_a_key_that_every_query_looks_at_is_the_sink():
    weights = np.tri(6) / np.arange(1, 7)[:, None]
    weights[2:] = 0.9 * np.eye(6)[1] + 0.1 * weights[2:]
    (((found,),),) = ([head_statistics(weights[None, None], causal=True)[0]],)
    assert found["sink"] == 1 and found["sink_share"] > 0.7
    share = received(weights, np.tri(6, dtype=bool))
    np.testing.assert_allclose(share[5], weights[5, 5])
    np.testing.assert_allclose(found["first_token"], weights[:, 0].mean())
    np.testing.assert_allclose(found["row_sum"], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_every_mechanism_is_explained(base_config, name):
    run = opened(base_config, **{"attention.mechanism": name})
    with jax.set_mesh(run.program.mesh):
        found = explain(run, ["ab"])
    for kind in found["attention"].values():
        np.testing.assert_allclose(np.sum(kind["rollout"], axis=-1), 1, atol=1e-4)
    assert len(found["tokens"]) == 3


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, base_config):
    """A classifier that has learned which of two words is in a text."""
    folder = tmp_path_factory.mktemp("words")
    draw = np.random.default_rng(0)
    lines = ["text,label"]
    for number in range(160):
        words = draw.choice(["the", "a", "of", "we", "it", "on"], size=5).tolist()
        words[draw.integers(5)] = ("poor", "good")[number % 2]
        lines.append(f"{' '.join(words)} {number},{('neg', 'pos')[number % 2]}")
    (folder / "texts.csv").write_text("\n".join(lines))
    settings = {
        "data.source": f"files:{folder}/texts.csv",
        "task.name": "classification",
        "task.pooling": "mean",
        "model.architecture": "encoder",
        "model.num_layers": 2,
        "output.tied": False,
        "output.bias": True,
        "attention.weighting": "sparsemax",
        "optimizer.learning_rate": 5e-3,
        "batch_size": 32,
        "cache_dir": str(folder / "cache"),
    }
    config = override(base_config, settings)
    corpus = prepare_corpus(config)
    program = corpus_program(config, corpus)
    rows = corpus.rows("train")
    with jax.set_mesh(program.mesh):
        state = program.init_state(jax.random.key(0))
        for step in range(60):
            chosen = [rows[int(i)] for i in draw.integers(len(rows), size=32)]
            batch = {name: np.stack([row[name] for row in chosen]) for name in chosen[0]}
            state, _ = program.train_step(state, batch, jax.random.key(step))
    return Restored(config, corpus.tokenizer, program, state.eval_params, 60)


def test_the_word_that_leave_one_out_names_moves_the_prediction_most(classifier):
    """A text with the mask in a word's place is one that the run's own program predicts too."""
    for word, label in (("good", "pos"), ("poor", "neg")):
        text = f"we on {word} it the"
        with jax.set_mesh(classifier.program.mesh):
            found = explain(classifier, [text], replacement="mask")
        assert found["target"]["name"] == label
        before = probability_of(classifier, [*text.encode()], label)
        np.testing.assert_allclose(found["target"]["score"], np.log(before), atol=1e-4)
        assert before > 0.8
        falls = {}
        for each, words in zip(found["words"], text.split(), strict=True):
            assert each["text"].strip() == words
            begin = text.index(each["text"])
            ids = [*text.encode()]
            ids[begin : begin + len(each["text"])] = [ByteTokenizer.mask] * len(each["text"])
            fall = np.log(before) - np.log(probability_of(classifier, ids, label))
            np.testing.assert_allclose(each["leave_out"], fall, atol=2e-4)
            falls[words] = fall
        assert max(falls, key=lambda name: falls[name]) == word
        best = max(found["words"], key=lambda each: each["leave_out"])
        assert best["text"].strip() == word
        total = sum(each["integrated_gradients"] for each in found["words"])
        sums = found["integrated_gradients"]
        np.testing.assert_allclose(total, sums["sum"], rtol=1e-6)
        assert abs(sums["residual"]) <= 0.01 * abs(sums["score"] - sums["baseline_score"])


def probability_of(run, ids, label):
    """By the run's own program, of the ids of a text."""
    task, labels, layout = run.task_layout
    row = task.text_row([type("Ids", (), {"ids": np.array(ids, np.int32)})], layout, 0)
    rows = {name: np.stack([each]) for name, each in (row | {"row": np.int32(1)}).items()}
    with jax.set_mesh(run.program.mesh):
        found = run.program.predict(run.params, rows)
    return float(np.exp(np.asarray(found["log_probs"])[0, 0, labels.index(label)]))


def test_an_explanation_is_written_as_json_a_page_without_network_and_figures(
    classifier, plain, tmp_path
):
    folder = epath.Path(tmp_path / "out")
    given = {"texts": ["a good <b>&"], "target": "neg", "replacement": "padding"}
    said = run_explain(lambda: classifier, folder, None, **given)
    assert "'neg'" in said[1] and "written" in said[-1]
    found = json.loads((folder / "explanation.json").read_text())
    assert found["target"]["name"] == "neg" and found["decision"]["of"] == 2
    assert len(found["logit_lens"]["layers"]) == 3
    page = (folder / "explanation.html").read_text()
    assert "<b>&" not in page and "http" not in page and "src=" not in page
    for name in ("words", "lens", "attention", "attention_heads"):
        assert np.ptp(matplotlib.image.imread(folder / f"{name}.png")) > 0.9
    with jax.set_mesh(plain.program.mesh):
        page = make_page(explain(plain, [""]), "an empty text")
    assert "likeliest next token" in page


def test_what_cannot_be_explained_is_named(base_config, plain, classifier):
    run = plain
    encoder = opened(base_config, **{"model.architecture": "encoder", "objective": "masked"})
    for asked, texts, target, message in (
        (run, ["a", "b"], None, "takes one --prompt of a language model; 2 are given"),
        (run, ["a" * 40], None, "the text has 41 tokens, more than the model's 32"),
        (run, ["a"], "", "--target= is empty"),
        (encoder, ["a"], None, "explain wants a decoder or a classifier"),
        (classifier, ["a"], "po", "--target=po is no label of the run, which has neg, pos"),
        (classifier, ["a", "b"], None, "a --prompt for each column that the run reads: text"),
    ):
        with pytest.raises(UserError, match=message):
            explain(asked, texts, target)
    with pytest.raises(UserError, match="explain needs --prompt=TEXT"):
        run_explain(lambda: run, None, None, texts=[], target=None, replacement="padding")
