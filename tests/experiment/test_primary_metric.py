"""The metric of a table and early stopping, and which direction is better."""

import pytest

from configs import default
from lm.config import override
from lm.experiment.primary_metric import primary_metric


@pytest.mark.parametrize(
    ("task", "metric", "name", "lower"),
    [
        ("", None, "eval/bits_per_byte", True),
        ("", "eval/excess_nats", "eval/excess_nats", True),
        ("", "eval/accuracy", "eval/accuracy", False),
        ("classification", None, "eval/accuracy", False),
        ("classification", "eval/f1", "eval/f1", False),
        ("classification", "eval/nats_per_label", "eval/nats_per_label", True),
        ("classification", "eval/forgetting", "eval/forgetting", True),
    ],
)
def test_an_ablations_own_metric_has_its_own_direction(task, metric, name, lower):
    config = override(default.get_config(), {"task.name": task})
    assert primary_metric(config, metric) == (name, lower)
