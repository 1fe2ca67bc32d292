"""Compressed weights are the nearest small integers, and what is exported computes with them."""

import json

import jax
import numpy as np
import pytest

from lm.checkpoints.compression import (
    COMPRESSIONS,
    compressed,
    dequantized_params,
    quantized_params,
    stored_bytes,
)
from lm.checkpoints.compression.dynamic import int8_product
from lm.checkpoints.compression.quantize import dequantize, quantize
from lm.checkpoints.export.command import export
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.held_out import evaluate
from lm.generation.decode import generate
from lm.generation.sample import SamplingParams
from lm.training.prepare import corpus_program, prepare_corpus


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 8), (4, None), (8, 5)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_every_weight_is_within_half_a_step_and_quantized_weights_stay(bits, group, axis):
    w = np.random.default_rng(0).normal(size=(3, 16, 24)).astype(np.float32)
    w[1, 2] = 0
    first = quantize(w, bits, axis, group)
    found = np.asarray(dequantize(first), np.float64)
    size = w.shape[axis]
    together = size if not group or size % group else group
    moved = np.moveaxis(w, axis, -1).astype(np.float64)
    parts = np.abs(moved.reshape(*moved.shape[:-1], -1, together)).max(-1)
    steps = np.repeat(parts / (2 ** (bits - 1) - 1), together, axis=-1)
    errors = np.abs(np.moveaxis(found, axis, -1) - moved)
    assert (errors <= 0.5 * steps * (1 + 1e-5) + 1e-12).all()
    assert not found[1, 2].any()
    again = quantize(found.astype(np.float32), bits, axis, group)
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_allclose(dequantize(again), found, rtol=1e-6)
    assert np.asarray(first.values).nbytes == w.size * bits // 8


def test_a_product_of_integers_is_its_formula_in_float64():
    draw = np.random.default_rng(1)
    x, kernel = draw.normal(size=(2, 5, 64)), draw.normal(size=(64, 7))
    bias = draw.normal(size=7).astype(np.float32)
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    x[0, 0] = 0
    scales = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    w_scales = np.abs(kernel).max(0) / np.float32(127)
    x_q = np.rint(x / np.where(scales > 0, scales, 1))
    w_q = np.rint(kernel / w_scales)
    expected = (x_q.astype(np.float64) @ w_q) * scales * w_scales + bias
    np.testing.assert_allclose(int8_product(x, kernel, bias), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(int8_product(x, kernel), x.astype("f8") @ kernel, atol=0.3)


def opened(base_config, **settings):
    """A run with noisy weights and held-out text."""
    config = override(base_config, {"model.init_std": 0.1, **settings})
    corpus = prepare_corpus(config)
    program = corpus_program(config, corpus)
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(1)).all_params
    return Restored(config, ByteTokenizer(), program, params, 1)


@pytest.fixture(scope="module")
def run(base_config):
    return opened(
        base_config,
        **{"model.num_layers": 2, "model.scan": True, "attention.weighting": "entmax15"},
    )


def loss(run):
    with jax.set_mesh(run.program.mesh):
        metrics, _ = evaluate(run.program, run.params, run.corpus, run.config)
    return metrics["eval/nats_per_token"]


def test_compressed_runs_lose_little_and_four_bits_lose_more(run):
    whole = loss(run)
    lost = {name: abs(loss(compressed(run, name)) - whole) for name in COMPRESSIONS}
    assert 0 < lost["int8"] < 5e-3 and 0 < lost["int8_dynamic"] < 2e-2
    assert lost["int8"] < lost["int4"] < 0.2
    sizes = {name: stored_bytes(quantized_params(run.params, name)) for name in COMPRESSIONS}
    assert sizes["int4"] < sizes["int8"] < 0.35 * stored_bytes(run.params)
    assert compressed(run, None) is run


@pytest.mark.parametrize("head", ["mixture", "adaptive", "sparsemax"])
@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.slow
def test_any_head_is_compressed(base_config, head, name):
    run = opened(base_config, **{"output.head": head})
    assert abs(loss(compressed(run, name)) - loss(run)) < 0.3


def test_a_compressed_run_generates(run):
    small = compressed(run, "int8_dynamic")
    sampling = {**vars(SamplingParams(temperature=0.0)), "max_new_tokens": 3}
    with jax.set_mesh(run.program.mesh):
        prompts = [np.array([100, 101], np.int32)]
        tokens = list(generate(small.program.model, small.params, prompts, **sampling))
    assert len(tokens) == 3


@pytest.mark.slow
def test_an_export_stores_small_integers_and_is_certified_against_the_compressed_run(run, tmp_path):
    pytest.importorskip("flatbuffers")
    sizes = {}
    for name in (None, "int8", "int4"):
        folder = tmp_path / str(name)
        lines, passed = export(compressed(run, name), "stablehlo", str(folder))
        assert passed, lines
        certificate = json.loads((folder / "certificate.json").read_text())
        assert certificate["max_difference"] < 1e-4
        assert json.loads((folder / "export.json").read_text())["compression"] == name
        sizes[name] = (folder / "model.stablehlo").stat().st_size
    stored = stored_bytes(run.params)
    quantized = stored_bytes(quantized_params(run.params, "int8"))
    # Programs without their weights differ by what turns integers into weights.
    assert sizes["int8"] - quantized < 2 * (sizes[None] - stored)
    assert sizes["int4"] < sizes["int8"] < sizes[None] - 0.6 * stored
    whole, small = (loss(each) for each in (run, compressed(run, "int8")))
    assert abs(whole - small) > 0  # so that the certificate is of the compressed weights
    with pytest.raises(UserError, match="--format=onnx holds weights in float32; with --compress"):
        export(compressed(run, "int8"), "onnx", str(tmp_path / "onnx"))


def test_stacked_layers_and_single_ones_have_the_same_integers(run):
    params = quantized_params(run.params, "int8")["stack"]["layers"]["feed_forward"]["in"]
    kernel = params["kernel"]
    alone = quantize(np.asarray(run.params["stack"]["layers"]["feed_forward"]["in"]["kernel"])[1],
                     8, -2)  # fmt: skip
    np.testing.assert_array_equal(kernel.values[1], alone.values)
    whole = dequantized_params({"kernel": kernel})["kernel"]
    np.testing.assert_array_equal(whole[1], dequantize(alone))
