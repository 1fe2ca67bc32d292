"""Impossible experiments die before any work, in one line that names value, limit and remedy."""

import importlib

import pytest

from configs import default, finetune
from lm.config import override
from lm.errors import UserError
from lm.experiment.validate import check
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from tests.test_golden import SHIPPED

CHAIN = {
    "continual.sources": ("files:a", "files:b"),
    "task.name": "classification",
    "model.architecture": "encoder",
    "output.tied": False,
}
IMPOSSIBLE = [
    ({"model.d_model": 130}, "130 is not divisible by config.model.num_heads = 4; use 128 or 132"),
    ({"model.num_kv_heads": 3}, "3 does not divide config.model.num_heads = 4; use one of 1, 2, 4"),
    ({"data.seq_len": 2048}, "2048 is longer than config.model.max_seq_len = 1024"),
    (
        {"grad_accum_steps": 3},
        "3 does not divide config.batch_size = 16; use one of 1, 2, 4, 8, 16",
    ),
    ({"schedule.warmup_steps": 300}, "300 must be below config.steps = 300"),
    # In float32 these are 0 and 1, and rows without a gradient would become 0/0.
    ({"optimizer.eps": 0.0}, "config.optimizer.eps = 0.0: must be at least 1e-30"),
    ({"optimizer.eps": 1e-46}, "must be at least 1e-30"),
    (
        {"optimizer.b2": 0.99999999},
        "config.optimizer.b2 = 0.99999999: must be at least 0 and below",
    ),
    ({"model.norm_eps": 1e-50}, "must be above 0, at least 1e-30"),
    ({"output.temperature": 1e-40}, "must be above 0, at least 1e-30"),
    (
        {"model.position_embedding": "sinusoidal", "model.embedding_dim": 33},
        "even width, not config.model.embedding_dim = 33",
    ),
    ({"attention.weighting": "sofmax"}, "did you mean softmax"),
    ({"output.head": "mixtur"}, "did you mean mixture"),
    ({"attention.cap": 3.0}, "weighting softmax has the options: none"),
    ({"attention.anneal": ("alpha", 1, 2)}, "must be an option, two values and steps"),
    ({"attention.anneal": ("cap", 1, 2, 3)}, "anneal has 'cap', but weighting softmax can move"),
    (
        {"attention.weighting": "softcap", "attention.anneal": ("cap", 0.0, 2.0, 3)},
        "values must be between 0 and inf",
    ),
    (
        {
            "attention.weighting": "softcap",
            "attention.anneal": ("cap", 9.0, 2.0, 3),
            "attention.cap": 9.0,
        },
        "moves cap, which is also set or learned",
    ),
    ({"attention.learn": ("cap",)}, "learn has 'cap', but weighting softmax can learn: none"),
    (
        {"attention.weighting": "sigmoid", "attention.learn": ("bias",)},
        "needs a number to start from; set config.attention.bias",
    ),
    (
        {"attention.weighting": "entmax", "attention.learn": ("alpha",), "attention.alpha": 2.0},
        "alpha = 2.0 cannot be learned from there; start above 1 and below 2",
    ),
    ({"attention.weighting": "entmax", "attention.alpha": 0.0}, "must be above 0"),
    ({"attention.weighting": "normmax", "attention.alpha": 1.0}, "must be from 1.001 up"),
    ({"attention.weighting": "alpha_relu", "attention.alpha": 2.5}, "must be from 1.001 to 2"),
    ({"attention.weighting": "top_k", "attention.k": 0}, "at least 1"),
    ({"output.mixtures": 3}, "softmax has the options: bias, cap"),
    ({"output.head": "adaptive"}, "no table of tokens to tie; use config.output.tied=False"),
    ({"output.head": "crf"}, "suits no causal objective"),
    ({"output.head": "entmax", "output.alpha": 1.0}, "above 1 and at most 2"),
    ({"output.head": "mixtape", "output.mixtures": 3}, "needs 1, 2, 4"),
    (
        {"output.head": "adaptive", "output.tied": False, "output.cutoffs": (30, 20)},
        "must rise, from at least 1",
    ),
    ({"output.head": "nce", "output.distribution": "zipf"}, "log_uniform, unigram"),
    ({"policy.reward": "fame"}, "config.policy.reward"),
    ({"policy.reward": "brevity", "output.head": "entmax"}, "log-probabilities, which head entmax"),
    (
        {"policy.reward": "brevity", "regularization.freelb": 2},
        "learned from alone, and config.regularization.freelb = 2",
    ),
    (
        {"policy.reward": "brevity", "policy.prompt_length": 300},
        "config.policy.prompt_length = 300 is longer than config.data.seq_len = 256",
    ),
    (
        {"policy.reward": "brevity", "policy.max_new_tokens": 1000},
        "make 1032 tokens, more than config.model.max_seq_len = 1024",
    ),
    (
        {"policy.reward": "brevity", "objective": "prefix"},
        "is of what a decoder writes, not of objective prefix",
    ),
    ({"policy.num_samples": 1}, "at least 2"),
    ({"model.dropout": 1.0}, "at least 0 and below 1"),
    ({"model.num_heads": 0}, "at least 1"),
    ({"data.validation_fraction": 0.0}, "above 0"),
    (
        {"model.position_embedding": "rotary", "model.head_dim": 5},
        "head size is 5; use an even one",
    ),
    ({"finetuning.method": "lorra"}, "did you mean lora"),
    ({"finetuning.method": "lora"}, "give its folder as config.init_from"),
    ({"finetuning.method": "lora+dora", "init_from": "base"}, "adds the same twice"),
    (
        {"finetuning.method": "bitfit", "init_from": "base", "finetuning.rank": 4},
        "bitfit has the options: none",
    ),
    (
        {"finetuning.method": "layers", "init_from": "base", "finetuning.num_layers": 9},
        "use at most as many",
    ),
    ({"model.architecture": "encoder"}, "model.architecture = 'decoder', not 'encoder'"),
    ({"objective": "maskd"}, "did you mean masked"),
    (
        {
            "objective": "masked",
            "model.architecture": "encoder",
            "corruption.mean_span_length": 3.0,
        },
        "corruption.mean_span_length is set, but objective masked has the options: mask_rate, "
        "whole_word",
    ),
    ({"data.source": "docstrings"}, "'docstrings' has pairs; use stdlib or files:PATTERN"),
    (
        {"objective": "seq2seq", "model.architecture": "encoder_decoder"},
        "'stdlib' has texts; use docstrings or pairs:PATTERN",
    ),
    ({"cross_attention.weighting": "sink"}, "'decoder' has config.attention only"),
    (
        {
            "objective": "span",
            "model.architecture": "encoder_decoder",
            "cross_attention.weighting": "entmx15",
        },
        "config.cross_attention.weighting = 'entmx15'",
    ),
    (
        {
            "objective": "span",
            "model.architecture": "encoder_decoder",
            "attention.weighting": "softcap",
            "attention.cap": 9.0,
            "encoder_attention.cap": -1.0,
        },
        "config.encoder_attention.cap = -1.0: must be above 0",
    ),
    (
        {
            "objective": "prefix",
            "attention.mechanism": "forgetting",
            "model.position_embedding": "none",
        },
        "objective prefix sees both sides",
    ),
    ({"evaluation.patience": 2, "evaluation.every": 0}, "makes none before the end"),
    ({"finetuning.method": "dora+ia3", "init_from": "x"}, "name ia3 before dora"),
    ({"task.name": "clasification"}, "did you mean classification"),
    (
        {"task.name": "token_classification"},
        "labels, which are no tokens; use config.output.tied=False",
    ),
    ({"task.name": "seq2seq", "task.metric": "bleu"}, "task.metric = 'bleu' is not one of"),
    ({"task.name": "instruction", "task.max_new_tokens": 9}, "task instruction does not"),
    (
        {"task.name": "seq2seq", "task.max_new_tokens": 1023, "data.seq_len": 64},
        "of config.model.max_seq_len = 1024 positions; use at most 990",
    ),
    (
        {
            "task.name": "classification",
            "output.tied": False,
            "task.pooling": "last",
            "data.seq_len": 2048,
        },
        "2048 is longer than config.model.max_seq_len = 1024",
    ),
    (
        {"task.name": "classification", "task.text": ("a", "b", "c")},
        "task classification reads 1 to 2 columns",
    ),
    ({"task.name": "regression", "task.text": ()}, "task regression reads 1 to 2 columns"),
    ({"task.name": "extractive_qa"}, "= ('text',): task extractive_qa reads 2 columns"),
    ({"task.name": "seq2seq", "task.text": ()}, "task seq2seq reads 1 or more columns"),
    (
        {"task.name": "token_classification", "task.text": ("a", "b")},
        "task token_classification reads 1 column;",
    ),
    (
        {"task.name": "classification", "task.labels": ("a", "a")},
        "config.task.labels = ('a', 'a') must be two or more texts, all different",
    ),
    (
        {"task.name": "token_classification", "task.labels": ("a",)},
        "must be two or more texts, all different",
    ),
    (
        {"prompt.source": "files:x", "task.labels": ("a", "a"), "prompt.verbalizers": ("b", "c")},
        "config.task.labels = ('a', 'a') must be two or more texts, all different",
    ),
    ({"task.name": "instruction", "task.balanced": True}, "which task instruction has none of"),
    (
        {"task.name": "instruction", "model.architecture": "encoder"},
        "wants config.model.architecture decoder",
    ),
    (
        {"task.name": "regression", "task.pooling": "last", "output.tied": False},
        "task regression wants config.output.head = 'squared'",
    ),
    (
        {
            "task.name": "extractive_qa",
            "task.text": ("question", "context"),
            "output.head": "adaptive",
            "output.tied": False,
        },
        "points at places of a row, which head adaptive cannot",
    ),
    (
        {
            "task.name": "extractive_qa",
            "task.text": ("question", "context"),
            "output.cap": 30.0,
            "output.tied": False,
            "model.architecture": "encoder",
        },
        "output.cap brings logits nearer",
    ),
    (
        {"task.name": "classification", "output.tied": False},
        "a decoder's first hidden state has seen nothing of the text",
    ),
    ({"optimizer.name": "adam"}, "did you mean adamw"),
    ({"special_tokens": ((), (1,))}, "must be three tuples of token ids"),
    ({"special_tokens": ((), (1,), ())}, "must be three tuples of token ids"),
    ({"special_tokens": ((), 1, ("a",))}, "must be three tuples of token ids"),
    ({"continual.replay_fraction": 0.5}, "replay_fraction = 0.5 needs several tasks; name them in"),
    ({"regularization.ewc": 1.0}, "ewc = 1.0 needs several tasks; name them in"),
    ({"continual.joint": True}, "joint = True needs several tasks"),
    ({"continual.sources": ("files:a",)}, "give two tasks or more, each once"),
    ({"continual.sources": ("files:a", "files:a")}, "give two tasks or more, each once"),
    ({"continual.sources": ("files:a", "files:b")}, "set config.task.name"),
    ({**CHAIN, "continual.replay_fraction": 1.0}, "must be at least 0 and below 1"),
    ({**CHAIN, "continual.memory_size": 9}, "continual.replay_fraction = 0.0 replays none"),
    ({**CHAIN, "continual.joint": True, "regularization.ewc": 1.0}, "joint = True has none"),
    ({**CHAIN, "continual.stage": 1, "continual.replay_fraction": 0.5}, "stage = 1 is the first"),
    ({**CHAIN, "continual.stage": 3}, "stage = 3 is not of 1 to 2"),
    ({**CHAIN, "continual.stage": 2}, "give its folder as config.init_from"),
    (
        {**CHAIN, "finetuning.method": "lora", "init_from": "x"},
        "this saves a part of them; use full",
    ),
    ({**CHAIN, "task.validation_source": "files:c"}, "is held out of one task"),
    (
        {**CHAIN, "regularization.l2": 1.0, "regularization.penalty_adaptation": 1.0},
        "follows the gap of one task",
    ),
    (
        {**CHAIN, "task.name": "instruction", "model.architecture": "decoder"},
        "task instruction packs examples",
    ),
]


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE)
def test_an_impossible_setting_is_named_with_its_limit_and_remedy(settings, message):
    with pytest.raises(UserError) as caught:
        check(override(default.get_config(), settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_classes", "kind"), [(0, "5 words"), (3, "3 labels")])
def test_class_weights_are_one_for_each_outcome(num_classes, kind):
    config = override(default.get_config(), {"output.class_weights": (1.0, 2.0)})
    config.task.update(name="classification", pooling="mean")
    layout = Layout(length=8, start=0, end=0, num_classes=num_classes)
    with pytest.raises(UserError, match=f"class_weights has 2 numbers for {kind}"):
        build_model(config, 5, layout=layout)


def test_a_misspelt_override_suggests_the_knob():
    with pytest.raises(UserError, match="d_model"):
        override(default.get_config(), {"model.d_modl": 64})


def test_an_override_of_the_wrong_type_is_refused():
    with pytest.raises(UserError, match="steps"):
        override(default.get_config(), {"steps": "many"})


# What golden.txt leaves out: tasks that differ from others in their columns only.
ALIKE = {"finetune": ("amazon", "conll2003", *finetune.GLUE)}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_and_each_of_its_rows_is_possible(name):
    module = importlib.import_module(f"configs.{name}")
    for argument in (None, *SHIPPED[name], *ALIKE.get(name, ())):
        config = module.get_config(argument)
        if name == "llama":  # tunes a checkpoint that the command line names
            config = override(config, {"init_from": "hf:llama"})
        check(config)
        for overrides in getattr(module, "sweep", lambda _: ())(argument):
            check(override(config, overrides))
    with pytest.raises(ValueError, match="huge"):
        module.get_config("huge")
