"""Runs share what need not be prepared twice."""

from lm.config import override
from lm.training import prepare as prepare_module


def test_runs_that_differ_only_in_the_seed_share_one_program(small_config):
    first = prepare_module.shared_program(small_config, 256)
    assert prepare_module.shared_program(override(small_config, {"seed": 5}), 256) is first
