"""A plan compiles a config for a slice, and says what it takes and what makes it fit."""

import math
import re

import jax
import pytest

from lm.config import override
from lm.devices.slices import open_slice
from lm.errors import UserError
from lm.experiment.plan.command import plan_config
from lm.experiment.plan.describe import describe_program
from lm.experiment.plan.mesh_search import meshes
from lm.experiment.plan.roofline import make_plan
from lm.training.program import build_program


@pytest.fixture
def untied(small_config):
    """A small model whose head has a matrix of its own."""
    return override(small_config, {"output.tied": False, "mesh.data": -1})


def test_a_plan_has_the_bytes_that_the_compiler_says(untied):
    plan = make_plan(untied, open_slice("cpu-2"))
    program = build_program(untied, 256, devices=jax.devices()[:2])
    rows = program.objective.abstract_rows(untied.batch_size)
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(program.mesh):
        compiled = program.train_step.lower(program.abstract_state, rows, key).compile()
    found, of = compiled.memory_analysis(), plan.train.memory
    assert of.temporaries == found.temp_size_in_bytes
    assert of.parameters + of.optimizer_state + of.batch + of.other == found.argument_size_in_bytes
    whole = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    assert of.total == whole + found.temp_size_in_bytes + found.generated_code_size_in_bytes
    assert plan.bytes >= of.total and plan.seconds is None


def test_data_parallel_training_reduces_the_gradient_once(untied):
    plan = make_plan(untied, open_slice("cpu-4"))
    (reduced,) = plan.collectives
    assert (reduced.kind, reduced.axes) == ("all-reduce", ("data",))
    # Beside the gradient, the sums of losses, of weights and of tokens.
    assert reduced.bytes == 4 * plan.num_params[0] + 3 * 4
    assert reduced.sent == reduced.bytes * 2 * 3 / 4


def test_a_plan_needs_neither_data_nor_the_checkpoint_to_start_from(small_config):
    absent = {
        "data.source": "tfds:lm1b",
        "data.tokenizer": "bpe",
        "data.vocab_size": 4096,
        "finetuning.method": "lora",
        "mesh.data": -1,
    }
    config, program, assumed = describe_program(override(small_config, absent), jax.devices()[:2])
    assert config.data.vocab_size == 4096 and not assumed
    assert math.prod(program.abstract_params["embedding"].shape) == 4096 * 32


def test_what_only_the_data_says_is_assumed_and_said(small_config):
    task = {
        "task.name": "classification",
        "model.architecture": "encoder",
        "output.tied": False,
        "epochs": 3.0,
        "mesh.data": -1,
    }
    described = describe_program(override(small_config, task), jax.devices()[:1])
    assert len(described.assumed) == 2
    named = override(small_config, {**task, "epochs": None, "task.labels": ("a", "b", "c")})
    assert describe_program(named, jax.devices()[:1]).assumed == ()


def test_what_does_not_fit_is_refused_with_a_change_that_makes_it_fit(untied):
    on = open_slice("cpu-4")
    memory = make_plan(untied, on).bytes * 0.8
    with pytest.raises(UserError, match=r"does not fit cpu-4: .* this fits, in") as refused:
        list(plan_config(untied, "small", "cpu-4", memory))
    flags = re.findall(r"--config\.([\w.]+)=(-?\w+)", str(refused.value))
    changes = {key: value == "True" if key == "model.remat" else int(value) for key, value in flags}
    assert changes and make_plan(override(untied, changes), on, memory).bytes <= memory


def test_what_no_change_makes_fit_is_refused_without_one(untied):
    with pytest.raises(UserError, match="more devices or a smaller model"):
        list(plan_config(untied, "small", "cpu-2", 1000.0))


def test_meshes_are_all_ways_to_divide_the_devices():
    found = [tuple(mesh.values()) for mesh in meshes(8)]
    assert len(found) == len(set(found)) == 10
    assert all(math.prod(sizes) == 8 for sizes in found)
