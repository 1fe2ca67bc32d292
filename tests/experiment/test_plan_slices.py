"""Plans for TPU slices and hosts of GPUs, by the compilers of the extras tpu and gpu."""

import importlib
import importlib.util

import jax
import pytest

from lm.config import override
from lm.devices.slices import open_slice
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.remedy import SMALL_CHUNKS, find_remedy
from lm.experiment.plan.roofline import make_plan
from tests.test_golden import SHIPPED

COMPILERS = {"v": ("libtpu",), "h": ("jax_cuda13_plugin", "jax_cuda12_plugin")}
# Configs of a size that a laptop trains, whose rows 16 devices divide.
LAPTOP = [
    (name, size)
    for name, sizes in SHIPPED.items()
    for size in sizes
    if size in (None, "tiny") and name not in ("finetune_grid", "finetune_table")
]
# All other sizes, each with its own mesh and batch.
LARGER = [
    (name, size)
    for name, sizes in SHIPPED.items()
    for size in sizes
    if (name, size) not in LAPTOP and name not in ("finetune_grid", "finetune_table")
]

pytestmark = pytest.mark.slow


@pytest.fixture
def slice_of():
    """The slice of a name; the test is not there to run where its compiler is not."""

    def find(name):
        names = COMPILERS[name[0]]
        if not any(map(importlib.util.find_spec, names)):
            pytest.skip(f"{name} needs {names[0]}: pip install '.[tpu]' or '.[gpu]'")
        jax.config.update("jax_platforms", "cpu")  # as `plan` does: a GPU's plugin asks for a GPU
        return open_slice(name)

    return find


@pytest.mark.parametrize("on", ["v5e-16", "v6e-8", "h100-8"])
@pytest.mark.parametrize(("name", "size"), LAPTOP)
def test_every_config_of_a_laptops_size_fits_with_the_bytes_that_the_compiler_says(
    name, size, on, slice_of, monkeypatch
):
    config = importlib.import_module(f"configs.{name}").get_config(size)
    config = override(config, {"batch_size": 16, "mesh.data": -1})
    check_plan(config, slice_of(on), monkeypatch)


@pytest.mark.parametrize("on", ["v5e-16", "v6e-8", "h100-8"])
@pytest.mark.parametrize(("name", "size"), LARGER)
def test_every_larger_config_fits_as_it_is_or_with_the_change_that_its_plan_names(
    name, size, on, slice_of, monkeypatch
):
    config, found = importlib.import_module(f"configs.{name}").get_config(size), slice_of(on)
    try:
        check_plan(config, found, monkeypatch)
    except DoesNotFit:
        remedy = find_remedy(config, found)
        assert remedy and remedy.plan.bytes < found.accelerator.memory


def check_plan(config, found, monkeypatch):
    """Compiles a config for a slice; the bytes of its plan are the compiler's, and fit."""
    said, analysis = [], jax.stages.Compiled.memory_analysis
    monkeypatch.setattr(
        jax.stages.Compiled,
        "memory_analysis",
        lambda compiled: said.append(analysis(compiled)) or said[-1],
    )
    plan = make_plan(config, found)
    assert 0 < plan.bytes < found.accelerator.memory and 0 < plan.mfu < 1.001
    for step, by_compiler in zip((plan.train, plan.evaluation), said, strict=True):
        of, arguments = step.memory, by_compiler.argument_size_in_bytes
        assert of.temporaries == by_compiler.temp_size_in_bytes
        assert of.parameters + of.optimizer_state + of.batch + of.other == arguments
        # The layout of a device pads rows of few numbers; counters and keys are few.
        assert of.other < 0.1 * arguments + 2**20


def test_fully_sharded_training_gathers_parameters_and_scatters_gradients(slice_of):
    config = importlib.import_module("configs.clm").get_config("tiny")
    changes = {"mesh.data": 1, "mesh.fsdp": -1, "output.tied": False, "model.num_layers": 2}
    plan = make_plan(override(config, changes), slice_of("v5e-8"))
    found = {each.kind: each for each in plan.collectives}
    matrices = 2 * (4 * 128 * 128 + 2 * 128 * 512) + 2 * 256 * 128
    # Each matrix is gathered in the forward pass, and again in the backward pass where its product
    # with the gradient is asked for, in bfloat16 at least; each gradient is scattered or reduced.
    assert 2 * matrices <= found["all-gather"].bytes <= 2 * 4 * matrices + 16 * 256 * 128 * 4
    reduced = sum(found[kind].bytes for kind in ("reduce-scatter", "all-reduce") if kind in found)
    assert reduced >= 4 * (matrices - 2 * 256 * 128)


def test_what_the_compiler_refuses_for_want_of_memory_has_a_change_that_it_accepts(slice_of):
    config = importlib.import_module("configs.clm").get_config("tiny")
    config, on = override(config, {"data.seq_len": 1024, "batch_size": 256}), slice_of("v5e-1")
    with pytest.raises(DoesNotFit) as refused:
        make_plan(config, on)
    assert refused.value.bytes > on.accelerator.memory
    remedy = find_remedy(config, on)
    assert remedy and remedy.plan.bytes < on.accelerator.memory
    assert set(remedy.changes) <= {"model.remat", *SMALL_CHUNKS, "grad_accum_steps"}


def test_a_state_too_large_for_a_chip_is_split_over_all(slice_of):
    config = importlib.import_module("configs.clm").get_config("tiny")
    sizes = {"data.tokenizer": "bpe", "data.vocab_size": 1_000_000, "data.seq_len": 128}
    sizes |= {"model.d_model": 1024, "model.num_layers": 1}
    remedy = find_remedy(override(config, sizes), slice_of("v5e-16"))
    assert remedy and remedy.changes == {"mesh.data": 1, "mesh.fsdp": -1}
