"""The typed config holds every key of its groups, and what follows from several of them."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import default
from lm.config import declared, override, replace_within, to_dict
from lm.training.config import config_keys, resolve

GROUPS = ("data", "optimizer", "schedule", "regularization", "evaluation", "checkpoint", "log")


def resolved(**settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return resolve(override(default.get_config(), named))


def test_every_key_of_a_typed_group_is_a_field_and_every_field_a_key():
    held = {key.name for key in config_keys()}
    assert held <= declared().keys()
    wanted = {key for key in declared() if key.split(".")[0] in GROUPS}
    # Whom a run learns from is read before there is a program.
    assert wanted - held == {"regularization.teacher"}


def test_a_config_that_was_read_from_json_is_the_same_typed():
    config = default.get_config()
    config.finetuning.target_modules = ("query",)
    again = resolve(ConfigDict(to_dict(config)))
    assert again == resolve(config) and hash(again) == hash(resolve(config))


def test_what_a_key_leaves_open_follows_from_others():
    assert resolved(regularization__mixup=0.2).regularization.mixup_layer == 4
    assert resolved(regularization__mixup_layer=0).regularization.mixup_layer == 0
    assert resolved(finetuning__num_layers=3).finetuning.frozen_blocks == 1
    assert resolved().optimizer.sparsity is None
    sparsity = resolved(steps=200, regularization__sparsity=0.5).optimizer.sparsity
    assert sparsity is not None
    assert (sparsity.final, sparsity.start, sparsity.end) == (0.5, 20, 140)


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_a_field_is_replaced_wherever_it_is(architecture):
    model = resolved(model__architecture=architecture).model
    changed = replace_within(model, query_chunk_size=3)
    assert "query_chunk_size=None" not in str(changed)
    assert replace_within(changed, query_chunk_size=None) == model
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.d_model = 1
