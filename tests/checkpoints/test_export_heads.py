"""The head of a task is written as the class of transformers that computes the same, or refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import default
from lm.checkpoints.hf import FAMILIES, write_checkpoint
from lm.checkpoints.hf.family import with_model_keys
from lm.checkpoints.hf.task_head import task_head
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from tests.checkpoints.hf_checkpoints import CASES, V, batch_of, padding, tokens

LABELS = ("O", "B-PER", "I-PER")
DECODERS = ("gpt2", "llama", "qwen2")
POOLINGS = {
    "bert": "pooler_tanh",
    "albert": "pooler_tanh",
    "roberta": "pooler_tanh",
    "distilbert": "pooler_relu",
    "electra": "pooler_gelu",
}


class _Words(ByteTokenizer):
    """As many words as the checkpoints have."""

    vocab_size = V


def run_of(name, task, **settings):
    """The config of a task's run on a family's model, its layout, and its family."""
    kind, sizes = CASES[name]
    family = FAMILIES[name]
    theirs = getattr(transformers, kind).config_class(**sizes).to_dict()
    own = {"task.name": task, "output.tied": False, "init_from": ""} | settings
    config = with_model_keys(
        override(default.get_config(), own), family.config_from_hf(theirs, "config.json")
    )
    layout = Layout(
        length=9, start=1, end=2, num_classes=9 if task == "extractive_qa" else len(LABELS)
    )
    return config, layout, family


def rows_of(task):
    """A batch for a task's head, and where its targets stand, [B, T]."""
    inputs, real = tokens(), padding()
    places = np.array([[0, 2, 5], [0, 1, 4]])
    if task in ("classification", "regression"):
        places = real.sum(1, keepdims=True) - 1
    if task == "extractive_qa":
        places = np.zeros((2, 2), int)
    ones = jnp.ones(places.shape, jnp.float32)
    batch = batch_of(inputs, real).replace(
        target_positions=jnp.asarray(places, jnp.int32),
        targets=ones.astype(jnp.int32),
        weights=ones,
    )
    return batch, places


def random_params(model, batch):
    """Parameters that all matter."""
    keys = {"params": jax.random.key(0), "softmax": jax.random.key(1)}
    init = functools.partial(model.init, keys, batch, False, method="loss")
    draw = np.random.default_rng(0)
    flat = {
        path: ("scale" in path[-1]) + 0.2 * draw.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(jax.eval_shape(init)["params"]).items()
    }
    return unflatten_dict(flat)


def log_softmax(logits):
    return torch.log_softmax(logits, -1).numpy()


def slow(name, task):
    return pytest.param(name, task, marks=pytest.mark.slow)


SAME = [
    ("bert", "token_classification"),
    ("llama", "token_classification"),
    ("gpt2", "classification"),
    ("bert", "classification"),
    ("albert", "extractive_qa"),
    ("qwen2", "extractive_qa"),
    *(
        slow(name, "token_classification")
        for name in ("roberta", "distilbert", "albert", "electra", "gpt2")
    ),
    *(slow(name, "classification") for name in ("llama", "qwen2", *POOLINGS) if name != "bert"),
    *(slow(name, "extractive_qa") for name in ("bert", "roberta", "distilbert", "electra", "gpt2")),
    slow("llama", "extractive_qa"),
]


@pytest.mark.parametrize(("name", "task"), SAME)
def test_transformers_computes_the_same_logits_from_a_tasks_head(name, task, tmp_path):
    bias = {"output.bias": True} if task == "token_classification" or name in POOLINGS else {}
    if task == "extractive_qa":
        bias = {}
    pooling = POOLINGS.get(name, "last") if task == "classification" else "last"
    config, layout, family = run_of(name, task, **bias, **{"task.pooling": pooling})
    batch, places = rows_of(task)
    model = build_model(config, V, layout=layout)
    params = random_params(model, batch)
    ours = np.asarray(model.apply({"params": params}, batch, method="predictions")["log_probs"])
    labels = () if task == "extractive_qa" else LABELS
    kind = write_checkpoint(
        config, params, _Words(), tmp_path / "out", family, labels=labels, layout=layout
    )
    model, told = getattr(transformers, kind).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not (told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"])
    ids, real = (torch.as_tensor(np.asarray(x, np.int64)) for x in (batch.inputs, batch.segments))
    with torch.no_grad():
        if task == "classification":  # a row at a time, as these tokens have no padding
            rows = [model(ids[i : i + 1, : int(real[i].sum())]).logits for i in range(2)]
            theirs = log_softmax(torch.stack(rows))
        elif task == "token_classification":
            found = model.eval()(input_ids=ids, attention_mask=real).logits
            theirs = np.take_along_axis(log_softmax(found), places[:, :, None], 1)
        else:
            found = model.eval()(input_ids=ids, attention_mask=real)
            both = torch.stack([found.start_logits, found.end_logits], 1)
            theirs = log_softmax(both.masked_fill(real[:, None] == 0, -1e4))
    seen = theirs > -1e3
    np.testing.assert_allclose(ours[seen], theirs[seen], rtol=0, atol=2e-5)
    if task != "extractive_qa":
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.label2id["I-PER"] == 2


def test_a_regression_is_written_with_its_number(tmp_path):
    settings = {"output.head": "squared", "task.pooling": "last"}
    config, _, family = run_of("gpt2", "regression", **settings)
    head = task_head(config, family, ())
    assert head.settings["problem_type"] == "regression"
    assert head.settings["id2label"] == {"0": "LABEL_0"}


REFUSED = {
    "tanh": ("bert", "classification", {}, "has a layer between .* train with 'pooler_tanh'"),
    "relu": ("distilbert", "classification", {}, "has a layer between .* train with 'pooler_relu'"),
    "gelu": ("electra", "regression", {"output.head": "squared"}, "train with 'pooler_gelu'"),
    "mean": ("llama", "classification", {"task.pooling": "mean"}, "train with 'last'"),
    "bias": (
        "gpt2",
        "classification",
        {"task.pooling": "last", "output.bias": True},
        "GPT2ForSequenceClassification has no bias; train with config.output.bias=False",
    ),
    "multiple_choice": (
        "bert",
        "multiple_choice",
        {},
        "config.task.name = 'multiple_choice': transformers' classes for",
    ),
    "crf": (
        "bert",
        "token_classification",
        {"output.head": "crf"},
        "has no config.output.head = 'crf'",
    ),
    "cap": ("bert", "token_classification", {"output.cap": 3.0}, r"has no config.output.cap = 3.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_transformers_computes_otherwise_is_refused_by_name(name, tmp_path):
    family, task, settings, line = REFUSED[name]
    config, layout, family = run_of(family, task, **settings)
    with pytest.raises(UserError, match=line) as error:
        write_checkpoint(
            config, {}, _Words(), tmp_path / "out", family, labels=LABELS, layout=layout
        )
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
