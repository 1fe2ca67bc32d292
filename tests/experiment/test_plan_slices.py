"""Plans for TPU slices and hosts of GPUs, by the compilers of the extras tpu and gpu."""

import importlib
import importlib.util

import jax
import pytest

from lm.config import override
from lm.devices.slices import open_slice
from lm.experiment.plan.compile import DoesNotFit
from lm.experiment.plan.describe import describe_program
from lm.experiment.plan.remedy import find_remedy
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

pytestmark = pytest.mark.slow


@pytest.fixture
def slice_of():
    """The slice of a name; the test is not there to run where its compiler is not."""

    def find(name):
        names = COMPILERS[name[0]]
        if not any(map(importlib.util.find_spec, names)):
            pytest.skip(f"{name} needs {names[0]}: pip install '.[tpu]' or '.[gpu]'")
        return open_slice(name)

    return find


@pytest.mark.parametrize("on", ["v5e-16", "v6e-8", "h100-8"])
@pytest.mark.parametrize(("name", "size"), LAPTOP)
def test_every_config_of_a_laptops_size_fits_with_the_bytes_that_the_compiler_says(
    name, size, on, slice_of
):
    config = importlib.import_module(f"configs.{name}").get_config(size)
    config = override(config, {"batch_size": 16, "mesh.data": -1})
    found = slice_of(on)
    plan = make_plan(config, found)
    assert 0 < plan.bytes < found.accelerator.memory and 0 < plan.mfu <= 1
    program = describe_program(config, found.devices).program
    rows = program.objective.abstract_rows(config.batch_size)
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(program.mesh):
        compiled = program.train_step.lower(program.abstract_state, rows, key).compile()
    analysis, of = compiled.memory_analysis(), plan.train.memory
    assert of.temporaries == analysis.temp_size_in_bytes
    assert of.total - of.temporaries - of.results - of.program == analysis.argument_size_in_bytes


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


def test_a_model_too_large_for_its_slice_is_refused_with_a_mesh_that_fits(slice_of):
    config = importlib.import_module("configs.clm").get_config("xl")
    sizes = {"model.num_layers": 12, "batch_size": 16, "data.seq_len": 512, "mesh.fsdp": 1}
    config, on = override(config, sizes | {"mesh.data": -1}), slice_of("v5e-8")
    with pytest.raises(DoesNotFit):
        make_plan(config, on)
    remedy = find_remedy(config, on)
    assert remedy and remedy.changes["mesh.fsdp"] == -1
    assert remedy.plan.bytes < on.accelerator.memory
