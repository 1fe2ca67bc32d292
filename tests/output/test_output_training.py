"""Heads train and are judged inside a whole run: words' counts, steps, and measures reach them."""

from types import SimpleNamespace
from typing import Any

import pytest

from lm.config import override
from lm.data import ByteTokenizer
from lm.data.objectives import build_objective
from lm.experiment.train import train
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.training.build_model import build_model, check_devices
from lm.training.config import resolve
from lm.training.profiling.paths import attention_path, output_path
from lm.training.program import build_program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "options"),
    [("adaptive", {"tied": False}), ("dynamic", {"samples": 16, "every": 3}), ("entmax", {})],
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


def test_the_head_of_a_masked_model_leaves_out_what_is_not_hidden(small_config):
    settings = {"objective": "masked", "model.architecture": "encoder", "mesh.data": 4}
    settings |= {"mesh.tensor": 2, "corruption.mask_rate": 0.2}
    program = build_program(override(small_config, settings), 256)
    # Of 8 rows of 32, a device has 64 positions, of which 12.8 are hidden, give or take 3.2.
    expected = "softmax, 26 of 64 tokens gathered at a time of 128 words on each device"
    assert output_path(program) == expected


def test_a_run_says_how_its_own_decoder_and_its_own_targets_are_computed(small_config):
    pairs = override(
        small_config, {"objective": "seq2seq", "model.architecture": "encoder_decoder"}
    )
    program: Any = SimpleNamespace(
        config=resolve(pairs),
        objective=build_objective(pairs, ByteTokenizer()),
        model=build_model(pairs, 256),
        mesh=check_devices(pairs),
    )
    assert "over 8 to 32 keys" in attention_path(program)
    labels = override(small_config, {"task.name": "classification", "output.tied": False})
    task, layout = build_task(labels), Layout(length=32, start=0, end=0, num_classes=3)
    program.objective = TaskObjective(ByteTokenizer(), 32, task, layout)
    program.model = build_model(labels, 256, layout=layout)
    # One for each of 8 rows.
    assert output_path(program) == "softmax, 8 tokens at once"
