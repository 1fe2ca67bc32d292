"""A point's hash counts what it computes: no key at its default, and no cadence of evaluation."""

import json
import pathlib

import pytest

from configs import default
from lm.checkpoints.identity import (
    CHANGED_DEFAULTS,
    content_hash,
    differences,
    distinctive,
    identity,
    reference_defaults,
)
from lm.config import flatten, override, to_dict

RECORDED = pathlib.Path(__file__).parents[1] / "defaults.json"
FREE = {
    "evaluation.every": 7,
    "evaluation.num_examples": 0,
    "grad_accum_steps": 2,
    "model.remat": True,
    "attention.query_chunk_size": 4,
    "output.token_chunk_size": 8,
    "alarm.grad_norm": 3.0,
    "mesh.fsdp": 2,
    "log.every": 3,
    "prompt.source": "x",
}


def test_no_default_changes_without_an_entry_that_says_what_it_was():
    """A changed default is written into CHANGED_DEFAULTS, and a new key into tests/defaults.json,
    where it stays as it is; a key that is no more leaves that file."""
    recorded = json.loads(RECORDED.read_text())
    now = flatten(to_dict(default.get_config()))
    assert recorded.keys() == now.keys()
    changed = {key: value for key, value in recorded.items() if now[key] != value}
    assert changed == {k: v for k, v in CHANGED_DEFAULTS.items() if now[k] != v}


def test_the_hash_of_the_defaults_counts_nothing():
    assert distinctive(default.get_config()) == {}
    assert distinctive(override(default.get_config(), {"seed": 1, "steps": 9})) == {
        "seed": 1,
        "steps": 9,
    }
    assert "model.d_model" in identity(default.get_config())


@pytest.mark.parametrize("key", FREE)
def test_the_hash_counts_what_may_change_when_a_run_goes_on_in_rows_that_set_it_alone(key):
    before, after = default.get_config(), override(default.get_config(), {key: FREE[key]})
    assert content_hash(after) == content_hash(before) and not differences(after, before)
    assert content_hash(after, [key]) != content_hash(before)
    assert content_hash(before, [key]) not in (content_hash(before), content_hash(after, [key]))
    assert differences(after, before, [key]) == {
        key: (flatten(reference_defaults())[key], FREE[key])
    }


@pytest.mark.parametrize(
    ("part_of_training", "key"),
    [
        ({"evaluation.patience": 2}, "evaluation.every"),
        ({"regularization.penalty_adaptation": 1.0}, "evaluation.num_examples"),
        ({"alarm.policy": "skip"}, "alarm.grad_norm"),
    ],
)
def test_the_hash_counts_evaluations_and_alarms_that_are_a_part_of_training(part_of_training, key):
    before = override(default.get_config(), part_of_training)
    assert content_hash(override(before, {key: FREE[key]})) != content_hash(before)
