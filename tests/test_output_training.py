"""Heads train and are judged inside a whole run: words' counts, steps, and measures reach them."""

import pytest

from lm.config import override
from lm.train import train


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("adaptive", {"tied": False}),
        ("dynamic", {"samples": 16, "every": 3}),
        ("entmax", {}),
    ],
)
def test_a_run_with_the_head_finishes_and_reports_what_fits_it(
    small_config, tmp_path, head, options
):
    settings = {"output.head": head, "steps": 4, "evaluation.every": 0, "checkpoint.every": 0}
    settings |= {f"output.{name}": value for name, value in options.items()}
    result = train(override(small_config, settings), tmp_path / "run")
    assert result["eval/nats_per_token"] > 0
    assert ("eval/epsilon_perplexity" in result) == (head == "entmax")
    assert ("eval/sparsemax_score" in result) == (head == "entmax")
