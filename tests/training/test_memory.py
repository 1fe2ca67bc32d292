"""What a model needs at least is known by its shapes, and told before anything is compiled."""

import jax
import pytest

from lm.config import override
from lm.errors import UserError
from lm.experiment.train import train
from lm.training.profiling import memory
from lm.training.profiling.memory import check_memory, device_memory
from lm.training.program import build_program


@pytest.mark.parametrize(
    ("settings", "trains", "bytes_per_parameter"),
    [
        ({}, True, 16),  # a parameter, its gradient and two moments
        ({}, False, 4),
        ({"optimizer.name": "sgd"}, True, 12),
        ({"optimizer.ema_decay": 0.9}, True, 20),
        ({"model.param_dtype": "bfloat16"}, True, 2 + 4 + 8),  # the gradient is float32
        ({"mesh.data": 1, "mesh.fsdp": 2}, True, 8),
        (
            {"finetuning.method": "bitfit", "init_from": "x"},
            True,
            None,
        ),  # 4 where it is frozen, else 16
    ],
)
def test_the_least_memory_is_that_of_state_and_gradients(
    small_config, settings, trains, bytes_per_parameter, monkeypatch
):
    program = build_program(override(small_config, {"model.d_model": 64, **settings}), 256)
    count = sum(x.size for x in jax.tree.leaves(program.abstract_params))
    if bytes_per_parameter is None:
        bytes_per_parameter = (
            4 + 12 * sum(x.size for x in jax.tree.leaves(program.abstract_state.params)) / count
        )
    for factor, enough in ((0.95, False), (1.05, True)):
        most = int(factor * bytes_per_parameter * count)
        monkeypatch.setattr(memory, "device_memory", lambda devices, most=most: most)
        if enough:
            check_memory(program, trains)
        else:
            with pytest.raises(UserError, match=f"has {count:,} parameters: .* config.mesh.fsdp"):
                check_memory(program, trains)


def test_a_model_of_ten_quadrillion_parameters_is_told_what_it_takes(small_config, tmp_path):
    config = override(small_config, {"model.d_model": 40_000_000})
    with pytest.raises(UserError, match=r"parameters: .* take at least 286,102,494\.6 GiB on"):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("[a-z]*"))


def test_devices_of_one_host_have_equal_parts_of_its_memory():
    one, two = (device_memory(jax.devices()[:count]) for count in (1, 2))
    assert one is not None and one > 2**28
    assert two == one // 2
