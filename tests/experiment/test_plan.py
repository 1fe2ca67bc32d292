"""A plan compiles a config for a slice, and says what it takes and what makes it fit."""

import dataclasses
import itertools
import math
import re

import jax
import pytest
from etils import epath

from lm.config import override
from lm.devices.slices import open_slice
from lm.errors import UserError
from lm.experiment.ablation.points import Point
from lm.experiment.plan import ablation, command, mesh_search
from lm.experiment.plan.ablation import ablation_lines
from lm.experiment.plan.command import plan_config, plan_file, plan_meshes
from lm.experiment.plan.describe import describe_program
from lm.experiment.plan.mesh_search import meshes
from lm.experiment.plan.roofline import Plan, make_plan
from lm.training.program import build_program


@pytest.fixture(scope="module")
def untied(base_config):
    """A small model whose head has a matrix of its own."""
    return override(base_config, {"output.tied": False, "mesh.data": -1})


@pytest.fixture(scope="module")
def planned(untied):
    return make_plan(untied, open_slice("cpu-2"))


@pytest.fixture
def timed(planned, monkeypatch):
    """Plans in a module are this one, with a step of so many seconds: CPUs have no known peaks."""

    def set_time(module, seconds):
        def plan(config, on, memory=None):
            return dataclasses.replace(planned, config=config, slice=on, mesh=seconds(config, on))

        monkeypatch.setattr(module, "make_plan", plan)
        monkeypatch.setattr(Plan, "seconds", property(lambda plan: plan.mesh))
        monkeypatch.setattr(command, "plan_lines", lambda plan, name: [])

    return set_time


def sizes(config):
    return config.mesh.data, config.mesh.fsdp


def test_a_plan_has_the_bytes_that_the_compiler_says(untied, planned):
    program = build_program(untied, 256, devices=jax.devices()[:2])
    rows = program.objective.abstract_rows(untied.batch_size)
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(program.mesh):
        compiled = program.train_step.lower(program.abstract_state, rows, key).compile()
    found, of = compiled.memory_analysis(), planned.train.memory
    assert of.temporaries == found.temp_size_in_bytes
    assert of.parameters + of.optimizer_state + of.batch + of.other == found.argument_size_in_bytes
    whole = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    assert of.total == whole + found.temp_size_in_bytes + found.generated_code_size_in_bytes
    assert planned.bytes >= of.total and planned.seconds is None


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


def test_the_search_names_the_mesh_with_the_least_roofline(untied, timed):
    timed(mesh_search, lambda config, on: {(2, 1): 3.0, (1, 2): 1.0}.get(sizes(config), 2.0))
    *_, flags = itertools.takewhile(bool, plan_meshes(untied, "small", "cpu-2"))
    assert flags == "least: --config.mesh.data=1 --config.mesh.fsdp=2 --config.mesh.tensor=1"


def test_an_ablation_has_a_line_for_each_row_and_the_hours_of_all_points(untied, timed):
    timed(ablation, lambda config, on: 6 / len(on.devices) + 1)
    points = [
        Point(f"seed {i}", i, override(untied, {"seed": i}), epath.Path("."), {}) for i in (0, 1)
    ]
    lines = list(ablation_lines(points, open_slice("cpu-2")))
    assert [line.split()[1] for line in lines[1:3]] == ["0", "1"]
    # 12 steps of 4 s on two devices, point by point; or of 7 s on one, both points at once.
    assert "2 points: at least 1.6 min" in lines[-2] and "0.0533 chip-hours" in lines[-2]
    assert "2 workers of one chip: at least 1.4 min" in lines[-1] and "workers beat" in lines[-1]


def test_an_ablation_is_known_by_the_rows_of_its_file(small_config, tmp_path):
    file = tmp_path / "rows.py"
    file.write_text(
        "SEEDS = (0,)\ndef sweep(arg=None):\n    yield {}\n    yield {'data.seq_len': 7}\n"
    )
    first = next(plan_file(override(small_config, {"mesh.data": -1}), str(file), "cpu-2"))
    assert "2 rows x 1 seeds" in first
