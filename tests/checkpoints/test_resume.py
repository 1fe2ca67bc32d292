"""A run goes on with other settings where they change no number, and says what it changed."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import unflatten_dict

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.identity import FREE
from lm.checkpoints.init_params import _eval_params
from lm.checkpoints.layer_layout import layouts_differ, to_layout
from lm.checkpoints.resume import changed, check_changes, check_length, record_changes
from lm.config import override, to_dict
from lm.data.files import write_json
from lm.devices.sharding import path_name
from lm.errors import UserError, of_memory
from lm.experiment.hooks import recalled_stopping
from lm.experiment.run_dir import open_workdir
from lm.experiment.train import train
from lm.training.program import build_program

EVERY = {
    "steps": 20,
    "grad_accum_steps": 2,
    "model.remat": True,
    "model.scan": True,
    "attention.query_chunk_size": 4,
    "output.token_chunk_size": 8,
    "evaluation.every": 3,
    "evaluation.num_examples": 0,
    "evaluation.patience": 2,
    "mesh.fsdp": 2,
}
RESULT = {"eval/bits_per_byte": 1.0, "steps": 12, "seconds": 1.0, "config_hash": "0"}
SCHEDULE = {"schedule.name": "constant"}


@pytest.fixture
def begun(small_config, tmp_path):
    """A config, and the workdir of a run of it that is not finished."""
    write_json(tmp_path / "config.json", to_dict(small_config))
    return small_config, epath.Path(tmp_path)


@pytest.mark.parametrize("key", EVERY)
def test_what_changes_no_number_may_change_when_a_run_goes_on(begun, key):
    config, workdir = begun
    assert open_workdir(override(config, {key: EVERY[key]}), workdir) is None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 9 GB")])
def test_what_is_said_after_too_little_memory_can_be_done_in_the_same_workdir(begun, error):
    config, workdir = begun
    named = set(re.findall(r"config\.([a-z_.]*[a-z_])", of_memory(error) or ""))
    assert named == {
        "grad_accum_steps",
        "model.remat",
        "attention.query_chunk_size",
        "output.token_chunk_size",
        "mesh.fsdp",
    }
    assert open_workdir(override(config, {key: EVERY[key] for key in named}), workdir) is None


@pytest.mark.parametrize(
    ("key", "value"), [("batch_size", 4), ("seed", 7), ("data.seq_len", 16), ("model.dropout", 0.5)]
)
def test_what_changes_numbers_may_not(begun, key, value):
    config, workdir = begun
    with pytest.raises(UserError, match=f"belongs to another config: config.{key} is"):
        open_workdir(override(config, {key: value}), workdir)


@pytest.mark.parametrize(
    ("own", "change", "why"),
    [
        (
            {"regularization.penalty_adaptation": 1.0},
            {"evaluation.num_examples": 0},
            "penalty_adaptation follows what evaluations find",
        ),
        (
            {"regularization.penalty_adaptation": 1.0},
            {"steps": 20},
            "penalty_adaptation follows the evaluations",
        ),
        ({"regularization.sparsity": 0.5}, {"steps": 20}, "sparsity is spread over the steps"),
        ({"optimizer.name": "adafactor"}, {"model.scan": True}, "are those of stacked layers"),
        (
            {"finetuning.method": "head", "init_from": "x"},
            {"model.scan": True},
            "of the other layout",
        ),
        ({"regularization.l2_sp": 0.1}, {"model.scan": True}, "of the other layout"),
    ],
)
def test_what_would_change_numbers_after_all_is_refused_with_the_reason(
    small_config, own, change, why
):
    before = override(small_config, own)
    (key,) = change
    with pytest.raises(UserError, match=f"cannot go on with config.{key} = .*{why}"):
        check_changes(override(before, change), before, epath.Path("run"))


@pytest.mark.parametrize(
    ("name", "now", "done", "allowed"),
    [
        ("constant", 40, 10, True),
        ("rsqrt", 40, 20, True),
        ("cosine", 40, 10, False),
        ("linear", 21, 10, False),
        ("cosine", 40, 0, True),  # nothing is made yet
        ("cosine", 40, 3, True),  # nothing but the warm-up, and the peak is not yet used
        ("warmup_stable_decay", 40, 10, True),  # before the fall
        ("warmup_stable_decay", 40, 18, False),  # within it
        ("constant", 12, 12, True),
        ("constant", 9, 10, False),
    ],
)
def test_a_run_is_prolonged_where_its_learning_rates_would_have_been_the_same(
    small_config, name, now, done, allowed
):
    settings = {
        "steps": 20,
        "schedule.name": name,
        "schedule.warmup_steps": 3,
        "schedule.decay_fraction": 0.2,
    }
    before = override(small_config, settings)
    after = override(before, {"steps": now})
    if allowed:
        check_length(after, before, 20, now, done)
    else:
        with pytest.raises(UserError, match=r"another learning rate|has made"):
            check_length(after, before, 20, now, done)


def test_what_is_changed_is_recorded_and_said_and_the_run_is_not_finished_any_more(begun):
    config, workdir = begun
    write_json(workdir / "result.json", RESULT)
    assert open_workdir(config, workdir) == RESULT
    longer = override(config, {"steps": 20, "grad_accum_steps": 2})
    assert open_workdir(longer, workdir) is None
    said = record_changes(longer, config, workdir, 12)
    assert said == "changed at step 12: grad_accum_steps 1 -> 2, steps 12 -> 20"
    assert not (workdir / "result.json").exists()
    assert json.loads((workdir / "config.json").read_text()) == to_dict(longer)
    record_changes(config, longer, workdir, 15)
    lines = [json.loads(line) for line in (workdir / "changes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [12, 15]
    assert lines[0]["changed"] == {"grad_accum_steps": [1, 2], "steps": [12, 20]}
    assert record_changes(config, config, workdir, 15) == "" and not changed(config, config)


def test_a_finished_run_is_left_alone_or_says_why_other_rows_are_not_measured(begun):
    config, workdir = begun
    write_json(workdir / "result.json", RESULT)
    assert open_workdir(override(config, {"grad_accum_steps": 2}), workdir) is not None
    for change, instead in (
        (
            {"evaluation.num_examples": 0},
            "num_examples = 16 instead of 0; use that value, or measure it by eval$",
        ),
        ({"evaluation.patience": 3}, "patience = 0 instead of 3; .*, or another --workdir$"),
    ):
        with pytest.raises(UserError, match=f"finished, with config.evaluation.{instead}"):
            open_workdir(override(config, change), workdir)


def test_a_chain_may_not_change_its_length(begun):
    config, workdir = begun
    with pytest.raises(UserError, match=r"config\.steps is 12 there and 20 here"):
        open_workdir(override(config, {"steps": 20}), workdir, FREE)


def filled(abstract):
    """A state of these shapes in which every number is another."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(9 * draw.normal(size=x.shape), x.dtype), abstract)


def named(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer.ema_decay": 0.9, "regularization.sparsity": 0.5},
        {"optimizer.name": "muon", "schedule.unfreeze_every": 2},
        {"model.architecture": "encoder_decoder", "objective": "span", "optimizer.name": "lion"},
    ],
)
def test_stacked_layers_are_unstacked_and_the_reverse_without_a_changed_bit(small_config, settings):
    config = override(small_config, {"model.num_layers": 3, **settings})
    single, stacked = (
        build_program(override(config, {"model.scan": scan}), 300).abstract_state.saved
        for scan in (False, True)
    )
    state = filled(single)
    there = to_layout(named(state), stacked)
    back = to_layout(named(there), single)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(there)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(stacked)
    ]
    kernel = there.params["stack"]["layers"]["feed_forward"]["in"]["kernel"]
    own = state.params["stack"]["layer_2"]["feed_forward"]["in"]["kernel"]
    np.testing.assert_array_equal(kernel[2], own)
    assert layouts_differ(set(named(single)), set(named(stacked)))
    assert not layouts_differ(set(named(single)), set(named(single)))
    assert not layouts_differ({"head/table"}, set(named(single)))


def test_the_last_layers_alone_are_unstacked_as_the_last():
    mesh = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = {"params/stack/layers/in": jnp.arange(2.0)}
    wanted = {
        "params": {
            "stack": {
                f"layer_{i}": {"in": jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh)}
                for i in (3, 4)
            }
        }
    }
    found = to_layout(saved, wanted)["params"]["stack"]
    assert [float(found[f"layer_{i}"]["in"]) for i in (3, 4)] == [0.0, 1.0]


@pytest.mark.parametrize("scan", [False, True])
def test_a_run_starts_from_another_whose_layers_lie_otherwise(small_config, scan):
    config = override(small_config, {"model.num_layers": 3, "model.scan": scan})
    other = build_program(override(config, {"model.scan": not scan}), 256)
    program = build_program(config, 256)
    params = filled(program.abstract_params)
    found = _eval_params({"params": params, "ema_params": None}, other)
    names = named(other.abstract_params).keys()
    assert found.keys() == names
    back = _eval_params({"params": unflatten_dict(found, sep="/"), "ema_params": None}, program)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        np.testing.assert_array_equal(back[path_name(path)], leaf)


def remembered(config, workdir, records, kept):
    """Early stopping as a run at step 6 finds it, with checkpoints of some steps."""
    lines = ({"step": step, "eval/bits_per_byte": bits} for step, bits in records)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoints = SimpleNamespace(steps=kept, protect=lambda step: None)
    corpus = SimpleNamespace(metrics=("nats_per_token", "bits_per_byte"))
    return recalled_stopping(config, workdir, corpus, checkpoints, 6)


def test_patience_counts_evaluations_of_the_same_rows_whose_best_is_still_there(begun):
    config, workdir = begun
    patient = override(config, {"evaluation.patience": 3})
    records = [(2, 1.0), (4, 3.0), (6, 2.0), (8, 0.5)]
    assert remembered(patient, workdir, records, [2, 6]).best == 2
    # Patience was set after step 2, which nobody kept: counting begins here.
    late = remembered(patient, workdir, records, [4, 6])
    assert late.best is None and not late.done
    record_changes(override(patient, {"evaluation.num_examples": 0}), patient, workdir, 3)
    assert remembered(patient, workdir, records, [2, 6]).best == 6


@pytest.mark.slow
def test_a_run_goes_on_longer_in_parts_with_stacked_layers_to_the_same_numbers(
    small_config, tmp_path, losses, capsys
):
    config = override(small_config, {"model.num_layers": 2, "optimizer.ema_decay": 0.9, **SCHEDULE})
    whole = train(override(config, {"steps": 20}), tmp_path / "whole")
    train(config, tmp_path / "parts")
    changes = {"steps": 20, "grad_accum_steps": 2, "model.scan": True, "model.remat": True}
    found = train(override(config, changes), tmp_path / "parts")
    assert "changed at step 12: grad_accum_steps 1 -> 2, model.remat" in capsys.readouterr().out
    for name in ("eval/nats_per_token", "steps"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)
    assert Checkpoints(tmp_path / "parts").latest == 20
    steps = [each["train/loss"] for each in losses(tmp_path / "parts") if "train/loss" in each]
    np.testing.assert_allclose(
        steps, [e["train/loss"] for e in losses(tmp_path / "whole") if "train/loss" in e], rtol=1e-4
    )
