"""The collectives of a plan have the bytes that a formula gives, for a decoder on CPU devices.

A kernel is the matrix of a dense layer, and every number has 4 bytes. Between 2 devices XLA has
cheaper ways for small tables and rings, which the formulas of 4 and 8 do not have.
"""

import math

import jax
import pytest

from lm.config import override
from lm.devices.sharding import path_name
from lm.devices.slices import open_slice
from lm.experiment.plan.collectives import collectives
from lm.experiment.plan.compile import compile_train_step
from lm.experiment.plan.describe import describe_program
from lm.experiment.plan.hlo import read_module


def divided(config, axis, devices, layers):
    """Of a training step of a model of so many layers, over so many devices of one axis: bytes of
    collectives by kind, the entries of every parameter, and how many parameters are split.
    """
    changes = {"output.tied": False, "mesh.data": 1, f"mesh.{axis}": devices}
    config = override(config, changes | {"model.num_layers": layers})
    config, program, _ = describe_program(config, open_slice(f"cpu-{devices}").devices)
    step = compile_train_step(program, config.batch_size)
    found = collectives(read_module(step.text), program.mesh.shape)
    assert {each.axes for each in found} == {(axis,)}
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract_state.params)
    sizes = {path_name(path): math.prod(leaf.shape) for path, leaf in leaves}
    split = sum(not leaf.sharding.is_fully_replicated for _, leaf in leaves)
    return {each.kind: each.bytes for each in found}, sizes, split


def divisions(*cases):
    """Devices and layers; the first case is quick."""
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[1:]]
    return pytest.mark.parametrize(("devices", "layers"), [cases[0], *slow])


def batch_sizes(config):
    return config.batch_size, config.data.seq_len, config.model.d_model


@pytest.mark.parametrize("remat", [False, True])
@divisions((4, 1), (8, 1), (4, 2), (8, 2))
def test_fully_sharded_training_gathers_each_kernel_once_in_each_pass(
    base_config, remat, devices, layers
):
    config = override(base_config, {"model.remat": remat})
    found, sizes, split = divided(config, "fsdp", devices, layers)
    rows, length, features = batch_sizes(config)
    kernels = {name: size for name, size in sizes.items() if name.endswith("/kernel")}
    gathered = 2 * sum(kernels.values())  # forward and backward
    if remat:  # what follows a layer's last product needs no product computed again
        last = "feed_forward/out/kernel"
        gathered += sum(size for name, size in kernels.items() if not name.endswith(last))
    # Tables of tokens and positions stay split by features: a device looks up its features of all
    # tokens, and exchanges them for all features of its own tokens; so does the gradient, once for
    # both. The head's table is gathered once, as its loss and gradient are made in one pass.
    gathered += sizes["head/table"]
    tables = sizes["embedding"] + sizes["inputs/position_embedding"]
    assert found == {
        "all-gather": 4 * (gathered + 2 * rows * length),
        "all-to-all": 4 * 3 * rows * length * features // devices,
        # Gradients; then the loss, its weight, the number of tokens, and a square of each split
        # parameter's gradient in two norms: that of the metrics, and that of the clipping.
        "all-reduce": 4 * (sum(sizes.values()) - tables + 3 + 2 * split),
    }


@divisions((4, 1), (2, 1), (2, 2), (4, 2))
def test_tensor_parallel_training_reduces_activations(base_config, devices, layers):
    found, _, split = divided(base_config, "tensor", devices, layers)
    rows, length, features = batch_sizes(base_config)
    # Of each layer the two outputs, and the gradients of what query, key, value and the first
    # feed-forward product read; of the model the embedding, and the gradient that the head gives.
    activations = 6 * layers + 2
    # Of each token the head's maximum, its sum, and the target's logit.
    assert found == {
        "all-reduce": 4 * (rows * length * (activations * features + 3) + 1 + 2 * split)
    }


@divisions((4, 1), (8, 1), (4, 2), (8, 2))
def test_split_positions_send_keys_and_values_around_the_ring(base_config, devices, layers):
    config = override(base_config, {"data.seq_len": 8 * devices})
    found, sizes, _ = divided(config, "sequence", devices, layers)
    rows, length, features = batch_sizes(config)
    # Keys and values n - 1 times forward and n - 1 times backward, and their gradients n times.
    block = 2 * rows * (length // devices) * features
    ring = layers * block * (2 * (devices - 1) + devices)
    # A row has a token more than positions, and is cut with padding behind it: inputs move by up to
    # n - 1 places to the next device, targets by up to n - 2, and by one to the device before. A
    # byte of each row says whether a document begins where the next device does.
    shifted = 4 * rows * 2 * (devices - 1) + rows
    assert found == {
        "collective-permute": 4 * ring + shifted,
        "all-gather": 4 * rows * length,  # where documents begin, for positions within them
        "all-reduce": 4 * (sum(sizes.values()) + 2),  # gradients, the loss and its weight
    }
