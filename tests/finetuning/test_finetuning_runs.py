"""A adapted run keeps only what it trained, resumes on its own base, and refuses another."""

import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.init_params import check_init_from
from lm.checkpoints.initialize import starting_state
from lm.checkpoints.peft import with_adapter_keys
from lm.checkpoints.restore import restore
from lm.config import override
from lm.errors import UserError
from lm.experiment.train import train
from lm.finetuning import param_count
from lm.finetuning.merge import merge
from lm.training.program import build_program
from tests.commands import run

SIZES = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "steps": 4,
    "evaluation.every": 0,
    "evaluation.num_examples": 8,
    "checkpoint.every": 2,
}


@pytest.fixture(scope="module")
def adapted(base_config, tmp_path_factory):
    """The config, the folder and the result of a LoRA, whose base is beside it."""
    folder = epath.Path(tmp_path_factory.mktemp("adapted"))
    config = override(base_config, SIZES)
    train(config, folder / "base")
    config = override(config, {"init_from": str(folder / "base"), "finetuning.method": "lora"})
    return config, folder / "lora", train(config, folder / "lora")


def size(folder):
    files = pathlib.Path(folder).rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def test_a_finetuned_run_keeps_what_it_trained_alone(adapted):
    config, workdir, result = adapted
    base = workdir.parent / "base"
    before, after = restore(base), restore(workdir)
    assert result["trained_parameters"] == 2 * (2 * 16 * 8) < result["parameters"]
    frozen = after.program.init_state(jax.random.key(0)).frozen_params
    assert param_count(frozen) == param_count(before.params)
    for path, leaf in flatten_dict(before.params).items():
        np.testing.assert_array_equal(flatten_dict(after.params)[path], leaf)
    moved = after.params["stack"]["layer_0"]["attention"]["query"]["lora"]["b_kernel"]
    assert (np.asarray(moved) != 0).any()
    last = pathlib.Path("checkpoints") / str(config.steps)
    assert size(workdir / last) < size(base / last) / 2
    # Frozen parameters have no moments: what a step takes is less.
    whole = json.loads((base / "result.json").read_text())
    assert 0 < result["memory"] < whole["memory"]


def test_a_command_writes_the_adapter_for_peft_from_which_training_starts(adapted, tmp_path):
    config, workdir, _ = adapted
    finished = run(
        "export", "--adapter", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", flags=""
    )
    assert finished.returncode == 0, finished.stderr
    assert "an adapter for peft" in finished.stdout
    whole = override(
        config, {"finetuning.method": "full", "finetuning.adapter_from": str(tmp_path / "out")}
    )
    started = with_adapter_keys(whole)
    assert started.finetuning.method == "lora"
    # Of the joint matrix of GPT-2, keys are a part too, with an update of zero.
    assert list(started.finetuning.target_modules) == [
        "attention/key",
        "attention/query",
        "attention/value",
    ]
    program = build_program(started, 256)
    with jax.set_mesh(program.mesh):
        state, origin = starting_state(
            program, Checkpoints(tmp_path / "new"), started, jax.random.key(0)
        )
    assert "at step 4 with" in origin
    merged, expected = merge(started, state.all_params), merge(config, restore(workdir).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)


def test_a_fresh_parameter_that_is_not_trained_is_refused(adapted, tmp_path):
    config = override(adapted[0], {"output.tied": False})
    with pytest.raises(UserError, match=r"has no head/table .* use lora\+head"):
        train(config, tmp_path / "untied")


def test_a_run_that_keeps_only_what_it_trained_is_no_starting_point(adapted):
    check_init_from(str(adapted[1].parent / "base"))
    with pytest.raises(UserError, match=r"keeps only what lora trained of .*base; start from that"):
        check_init_from(str(adapted[1]))


@pytest.fixture(scope="module")
def begun(adapted, tmp_path_factory):
    """A run of the whole base that looks back to its start, as a function that begins or resumes
    it; its checkpoints; and its first state, which they hold.
    """
    habits = {
        "finetuning.method": "full",
        "regularization.sparsity": 0.5,
        "regularization.l2_sp": 0.1,
    }
    config = override(adapted[0], habits)
    program, checkpoints = build_program(config, 256), Checkpoints(tmp_path_factory.mktemp("begun"))

    def start():
        with jax.set_mesh(program.mesh):
            return starting_state(program, checkpoints, config, jax.random.key(7))[0]

    state = start()
    checkpoints.save(state)
    checkpoints.wait()
    return start, checkpoints, state


def test_pruning_ranks_the_weights_that_a_run_starts_from_and_not_its_random_ones(begun):
    *_, state = begun
    params, ranked = flatten_dict(state.params), flatten_dict(state.opt_state.dense)
    assert len(ranked) == 6
    for path, kernel in ranked.items():
        np.testing.assert_array_equal(kernel, params[path])


def test_a_run_that_looks_back_to_its_start_resumes_with_it_and_refuses_another(begun):
    start, checkpoints, state = begun
    jax.tree.map(np.testing.assert_array_equal, start().init_params, state.init_params)
    file = checkpoints.folder.parent / "base.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checksum": "0" * 12}))
    with pytest.raises(UserError, match=r"checksum 0{12}.*restore that base"):
        start()


def test_a_finetuned_run_resumes_on_its_base_and_refuses_another(adapted, losses):
    config, workdir, result = adapted
    # Without its result, the run goes on from its checkpoint and its base to the same numbers.
    expected = losses(workdir)
    (workdir / "result.json").unlink()
    again = train(config, workdir)
    assert again["eval/nats_per_token"] == result["eval/nats_per_token"]
    assert losses(workdir) == expected
    # A base that has changed since is refused.
    recorded = json.loads((workdir / "base.json").read_text())
    assert recorded["source"].endswith("at step 4")
    (workdir / "base.json").write_text(json.dumps(recorded | {"checksum": "0" * 12}))
    with pytest.raises(UserError, match=r"checksum 0{12}.*restore that base"):
        restore(workdir)
