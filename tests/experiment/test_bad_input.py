"""Whatever a key is set to, the answer is one line or a config that is possible."""

import functools
import json
import math
import operator
import re

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import default
from lm.checkpoints.resolve import resolve_init
from lm.checkpoints.restore import restore
from lm.checkpoints.run_files import recorded_config
from lm.checkpoints.teacher import teacher_config
from lm.config import declared, override, to_dict
from lm.errors import UserError, nearest
from lm.experiment.run_dir import open_workdir
from lm.experiment.validate import check
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from lm.training.prepare import total_steps
from tests.commands import run

# Between them, they look at every key.
SETTINGS = {
    "decoder": {},
    "classifier": {"task.name": "classification", "output.tied": False, "task.pooling": "mean"},
    "encoder_decoder": {
        "objective": "span",
        "model.architecture": "encoder_decoder",
        "cross_attention.mechanism": "linear",
    },
    "adaptive": {
        "attention.mechanism": "cosformer",
        "output.head": "adaptive",
        "output.tied": False,
    },
    "tuned": {"finetuning.method": "lora+prompt", "init_from": "x"},
    "prompted": {"prompt.source": "files:x"},
    "chain": {
        "continual.sources": ("files:a", "files:b"),
        "task.name": "classification",
        "model.architecture": "encoder",
        "output.tied": False,
    },
    "sampled": {"attention.weighting": "entmax", "output.head": "sampled"},
    "relative": {"model.position_embedding": "relative", "output.head": "class_factored"},
}
VALUES = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    0,
    1.5,
    1e300,
    10**20,
    -(10**20),
    2**31 - 1,
    True,
    None,
    "x",
]
VALUES += [[], ["x"], [0.5], [1, "x"], [[1]], {"a": 1}]


@pytest.mark.parametrize("name", SETTINGS)
def test_any_value_of_any_key_is_one_line_or_possible(name):
    plain = override(default.get_config(), SETTINGS[name])
    check(plain)
    config = ConfigDict(plain.to_dict(), type_safe=False)
    for key in declared():
        *groups, last = key.split(".")
        group = functools.reduce(operator.getitem, groups, config)
        kept = group[last]
        for value in VALUES:
            group[last] = value
            try:
                check(config)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 500
        group[last] = kept


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.cap", math.inf, "config.attention.cap = inf: must be finite"),
        ("optimizer.learning_rate", 1e39, "learning_rate = 1e+39: must be finite, in float32"),
        ("epochs", math.nan, "config.epochs = nan: must be finite"),
        ("output.class_weights", (1.0, math.nan), "class_weights = (1.0, nan): must be finite"),
        ("seed", 10**19, "must be at most 2147483647"),
        ("model.num_layers", "2", "config.model.num_layers = '2': must be a whole number"),
        ("model.num_layers", 2.0, "config.model.num_layers = 2.0: must be a whole number"),
        ("model.num_layers", True, "config.model.num_layers = True: must be a whole number"),
        ("model.num_heads", None, "config.model.num_heads = None: must be a whole number"),
        (
            "model.num_kv_heads",
            "x",
            "config.model.num_kv_heads = 'x': must be a whole number or None",
        ),
        ("attention.weighting", ["softmax"], "= ['softmax']: must be a text"),
        ("attention.learn", [3], "attention.learn = (3,): must be a tuple of texts"),
        ("output.cutoffs", ["x"], "must be a tuple of whole numbers"),
        ("model", 3, "config.model.activation is missing; start from the config of"),
        (
            "model.num_layers",
            10**7,
            "config.model.num_layers = 10000000: must be at least 1 and below",
        ),
    ],
)
def test_a_value_that_is_none_of_its_key_is_named(key, value, message):
    config = ConfigDict(default.get_config().to_dict(), type_safe=False)
    *groups, last = key.split(".")
    functools.reduce(operator.getitem, groups, config)[last] = value
    with pytest.raises(UserError, match=re.escape(message)):
        check(config)


def test_a_number_that_is_none_contradicts_no_checkpoint():
    config = override(default.get_config(), {"attention.cap": math.nan})
    with pytest.raises(UserError, match="must be finite"):
        resolve_init(config, ["attention.cap"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"output.head": "adaptive", "output.cutoffs": (30, 500)},
            "cutoffs = (30, 500): tail clusters begin below the 256 words",
        ),
        ({"output.head": "sampled", "output.samples": 257}, "samples = 257 is more than the 256"),
        ({"output.head": "nce", "output.samples": 10**6}, "samples = 1000000 is more than the 256"),
        (
            {"output.head": "class_factored", "output.classes": 300},
            "300 is more than the 256 words",
        ),
    ],
)
def test_a_head_has_no_more_of_anything_than_words(settings, message):
    config = override(default.get_config(), {"output.tied": False, **settings})
    check(config)
    with pytest.raises(UserError, match=re.escape(message)):
        build_model(config, 256)
    build_model(config, 10**6 + 1)


def test_a_head_of_a_task_has_no_more_clusters_than_labels():
    config = override(default.get_config(), {"output.head": "adaptive", "output.tied": False})
    config.task.update(name="classification", pooling="mean")
    config.output.cutoffs = (2, 5)
    with pytest.raises(UserError, match="begin below the 5 labels"):
        build_model(config, 256, layout=Layout(length=8, start=0, end=0, num_classes=5))


class Rows:
    manifest = {"splits": {"train": {"rows": 1000}}}  # noqa: RUF012


@pytest.mark.parametrize("epochs", [1e9, 1e307])
def test_epochs_that_no_counter_counts_are_named(epochs):
    config = override(default.get_config(), {"epochs": epochs, "batch_size": 100})
    with pytest.raises(UserError, match=r"is more steps than 2147483647; use fewer than 2\.15e"):
        total_steps(config, Rows())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "names", "meant"),
    [
        ("config.attention.foo", ["config.attention.tau", "config.attention.cap"], None),
        (
            "config.model.d_modle",
            ["config.model.d_model", "config.model.num_heads"],
            "config.model.d_model",
        ),
        ("config.modle.num_layers", ["config.model.num_layers"], "config.model.num_layers"),
        (
            "config.num_layers",
            ["config.model.num_layers", "config.steps"],
            "config.model.num_layers",
        ),
        (
            "config.block",
            ["config.attention.query_chunk_size", "config.output.token_chunk_size"],
            None,
        ),
        ("configs/mine.py", ["configs/clm.py", "configs/mlm.py"], None),
        ("configs/clmm.py", ["configs/clm.py", "configs/mlm.py"], "configs/clm.py"),
        ("SoftMax", ["softmax", "sigmoid"], "softmax"),
        ("banana", ["train", "eval", "gallery"], None),
        ("linear", ["adamw", "sgd", "lion"], None),
    ],
)
def test_only_what_is_near_is_suggested(name, names, meant):
    assert nearest(name, names) == (f"; did you mean {meant}?" if meant else "")


def test_every_key_that_may_be_none_is_set_to_it_on_the_command_line():
    keys = [key for key, each in declared().items() if each.optional]
    unset = [f"--config.{key}=None" for key in keys]
    finished = run("train", "--config=configs/finetune.py:tiny", "--print_config", *unset)
    assert finished.returncode == 0 and "epochs" in keys
    assert {f"{key} = None" for key in keys} <= set(finished.stdout.splitlines())


def test_what_may_not_be_none_is_refused_on_the_command_line(tmp_path):
    for flag in ("--config.steps=None", "--config.data.seq_len=None"):
        finished = run("train", "--config=configs/clm.py:tiny", flag, f"--workdir={tmp_path / 'x'}")
        assert finished.returncode == 2 and finished.stderr.count("\n") == 1


RECORDED = {
    "config.model.num_heads = 0: must be at least 1": {"model.num_heads": 0},
    "config.model.num_layers = '2': must be a whole number": {"model.num_layers": "2"},
    "config.attention.weighting = ['softmax']: must be a text": {
        "attention.weighting": ["softmax"]
    },
    "config.data.source = None: must be a text": {"data.source": None},
    "has model.features, which is no config key: a version of this code": {"model.features": 64},
    "has model, which is no config key": {"model": []},
    "holds no config: it has no optimizer.learning_rate": {"optimizer.learning_rate": ...},
}
DAMAGED = {"is no JSON object": "[1]", "is not JSON": "{", "holds no config": '{"": {"a.b.": 1}}'}


def recorded(folder, content):
    folder.mkdir()
    (folder / "config.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return epath.Path(folder)


def changed(settings):
    """A config as config.json holds it, with other values of some keys; ... leaves a key out."""
    content = to_dict(default.get_config())
    for key, value in settings.items():
        *groups, last = key.split(".")
        group = functools.reduce(operator.getitem, groups, content)
        group[last] = value
        if value is ...:
            del group[last]
    return content


@pytest.mark.parametrize("message", [*RECORDED, *DAMAGED])
def test_the_config_of_a_workdir_is_checked_wherever_one_is_opened(message, tmp_path):
    content = DAMAGED.get(message) or changed(RECORDED[message])
    workdir = recorded(tmp_path / "run", content)
    config = default.get_config()
    config.regularization.update(teacher=str(workdir), distillation=0.5)
    openings = [lambda: restore(workdir), lambda: teacher_config(config)]
    if "at least 1" not in message:  # else it belongs to another config than the one that is given
        openings += [lambda: restore(workdir, given=config), lambda: open_workdir(config, workdir)]
    for opened in openings:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            opened()
        assert str(workdir) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_of_a_version_with_other_keys_may_be_started_from(tmp_path):
    workdir = recorded(tmp_path / "run", changed({"model.features": 64, "grad_accum_steps": ...}))
    found = recorded_config(workdir / "config.json", strict=False)
    assert found.finetuning.method == "full" and found.grad_accum_steps == 1
    other = recorded(tmp_path / "other", changed({"model.features": 64, "finetuning.method": 3}))
    with pytest.raises(UserError, match=r"config\.finetuning\.method = 3: must be a text"):
        recorded_config(other / "config.json", strict=False)
