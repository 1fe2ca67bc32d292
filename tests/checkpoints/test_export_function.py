"""A run's model as one function for other runtimes, and the certificate of what they compute."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from lm.checkpoints.export.certificate import Certificate, first_texts
from lm.checkpoints.export.command import export
from lm.checkpoints.export.function import exported_function, positions_within
from lm.data.objectives.causal import positions_within as counted
from lm.devices.platform import PORTABLE, platform, portable
from lm.errors import UserError
from lm.softmax import WEIGHTINGS
from lm.training.program import build_program
from tests.checkpoints.hf_checkpoints import batch_of
from tests.small_models import config_of, noisy

CERTIFICATE = Certificate(
    format="onnx",
    runtime="onnxruntime",
    version="1.32.0",
    measure="log_probs",
    rows=2,
    positions=8,
    max_difference=2e-6,
    mean_difference=1e-7,
    argmax_agreement=1.0,
    source="stdlib",
    hash="0",
    versions={},
)


@dataclasses.dataclass
class Run:
    """What `exported_function` reads of a run."""

    config: object
    program: object
    params: object
    compression: str = ""


def run_of(**settings):
    config = config_of(**{"data.seq_len": 8, "model.num_layers": 1} | settings)
    program = build_program(config, 32)
    shapes = program.abstract_params
    return Run(config, program, noisy(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)))


def test_outside_of_portable_programs_are_for_the_device_again():
    with portable():
        assert platform() == PORTABLE
    assert platform() == jax.default_backend()


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_a_threshold_without_a_loop_gives_the_weights_of_the_loop(name):
    draw = np.random.default_rng(0).standard_normal((64, 600)).astype(np.float32)
    scores = jnp.asarray(draw * np.geomspace(0.01, 30, 64)[:, None])
    loop = WEIGHTINGS[name].apply(scores)
    with portable():
        plain = WEIGHTINGS[name].apply(scores)
    np.testing.assert_allclose(plain, loop, rtol=0, atol=1e-6)


def test_positions_of_packed_texts_are_counted_without_a_scan():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0], [3, 4, 4, 4, 0, 0]])
    real = np.asarray(segments) > 0
    np.testing.assert_array_equal(positions_within(segments)[real], counted(segments)[real])


def test_a_scanned_model_is_a_function_of_any_batch_and_length_without_loops():
    run = run_of(**{"model.scan": True, "model.num_layers": 2})
    function = exported_function(run)
    assert function.names == ("input_ids", "attention_mask")
    assert function.free_sizes() == ("batch", "length") and function.sizes["length"] == 8
    traced = str(jax.make_jaxpr(function)(*function.shapes(("batch", "length")).values()))
    assert "while" not in traced and "scan" not in traced


def test_the_first_text_of_a_packed_row_is_read_alone():
    segments = np.array([[1, 1, 2, 0], [4, 4, 4, 4]], np.int32)
    batch = batch_of(np.zeros((2, 4), np.int32), segments)
    batch = dataclasses.replace(batch, weights=jnp.ones((2, 4)))
    found = first_texts(batch)
    np.testing.assert_array_equal(found.segments, [[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(found.weights, found.segments)


def test_a_difference_beyond_the_tolerance_or_none_at_all_is_not_certified(tmp_path):
    assert CERTIFICATE.passed and str(CERTIFICATE).startswith("certified: log_probs of onnxruntime")
    for difference in (2e-4, float("nan")):
        failed = dataclasses.replace(CERTIFICATE, max_difference=difference)
        assert not failed.passed and str(failed).startswith("NOT CERTIFIED")
        failed.write(tmp_path)
        assert json.loads((tmp_path / "certificate.json").read_text())["passed"] is False


@pytest.mark.parametrize(
    "kind, options, line",
    [
        ("pickle", {}, "--format=pickle is none of hf, gguf, stablehlo, onnx, litert"),
        ("onnx", {"adapter": True}, "--adapter is for peft, and not for --format=onnx"),
    ],
)
def test_what_no_format_can_hold_is_refused_in_one_line(kind, options, line, tmp_path):
    with pytest.raises(UserError, match=line):
        export(run_of(), kind, str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
