"""Meshes, and the shardings of parameters, batches and training state, by rules over parameter
paths. No other file names mesh axes.

The mesh has the axes data (copies of the model), fsdp (rows of the batch, and parameters split
among them), sequence (positions of each row split) and tensor (heads, feed-forward features and
vocabulary split); one device is the mesh 1x1x1x1.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lm.errors import UserError

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")  # over which the rows of a batch are split
SEQUENCE_AXIS = "sequence"  # over which the positions of each row are split
TOKEN_AXES = (SEQUENCE_AXIS, *BATCH_AXES)  # over which tokens of all rows are split, in this order
VOCAB_AXIS = "tensor"  # over which the vocabulary is split
HEADS_AXIS = "tensor"  # over which attention's heads are split

# The first rule whose pattern is found in a parameter's path gives the axes of its last dimensions;
# dimensions before them (stacked layers) are whole. A parameter without a rule is whole everywhere.
_RULES = (
    (r"(position|type)_embedding$", (None, "fsdp")),
    (r"(^|/)(embedding|table)$", ("tensor", "fsdp")),
    (r"(query|key|value|in|gate)/kernel$", ("fsdp", "tensor")),
    (r"(query|key|value|in|gate)/bias$", ("tensor",)),
    (r"out/kernel$", ("tensor", "fsdp")),
    (r"(latent|prior)/kernel$", ("fsdp", None)),
    (r"head/bias$", ("tensor",)),
    # What fine-tuning adds follows the matrix that it is added to.
    (r"(query|key|value|in|gate)/lora/a_kernel$", ("fsdp", None)),
    (r"(query|key|value|in|gate)/lora/b_kernel$", (None, "tensor")),
    (r"(query|key|value|in|gate)/(lora/growth|ia3/scale)$", ("tensor",)),
    (r"out/lora/a_kernel$", ("tensor", None)),
    (r"out/lora/b_kernel$", (None, "fsdp")),
    (r"out/ia3/scale$", ("tensor",)),
    (r"adapter/down/kernel$", ("fsdp", None)),
    (r"adapter/up/kernel$", (None, "fsdp")),
)
# Parameters with an entry for each token of the vocabulary or each label, whose number may not
# divide over the tensor axis.
_OF_VOCAB = r"(^|/)(embedding|table|head/bias)$"


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over all devices of all hosts (or those given); -1 once stands for what remains.

    Raises:
      UserError: where the sizes do not use exactly the devices that there are, or slices of TPUs
        do not divide the axis data.
    """
    sizes = [data, fsdp, sequence, tensor]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    fixed = math.prod(size for size in sizes if size != -1)
    shape = "x".join(map(str, sizes))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh = {shape}: sizes are at least 1, and -1 at most once")
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise UserError(
            f"config.mesh = {shape} does not fit {count} devices; data * fsdp * sequence * tensor "
            f"must be {count} (-1 for one of them means the rest)"
        )
    return Mesh(_placed(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def described_mesh(kind: str, name: str) -> AbstractMesh:
    """The mesh of one device that need not be there, such as "NVIDIA H100 80GB HBM3", "gpu"."""
    device = AbstractDevice(kind, 1, name)
    types = (AxisType.Auto,) * len(AXES)
    return AbstractMesh((1,) * len(AXES), AXES, axis_types=types, abstract_device=device)


@contextlib.contextmanager
def as_cpus() -> Iterator[None]:
    """What is traced within is for CPUs, as many as the mesh in use has devices."""
    mesh, cpu = jax.sharding.get_abstract_mesh(), described_mesh("cpu", "cpu")
    if not mesh.empty:
        cpu = mesh.update(abstract_device=cpu.abstract_device)
    with jax.sharding.use_abstract_mesh(cpu):
        yield


def _placed(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of these sizes, neighbours on the inner axes nearest.

    Between slices of TPUs, which a data center's network connects, only the axis data goes.
    """
    # An axis may take a part of an axis of a TPU's torus; jax.make_mesh allows it on v5e alone.
    split = {"allow_split_physical_axes": True}
    # TPUs that are only described have no number of their slice.
    slices = len({getattr(each, "slice_index", 0) for each in devices if each.platform == "tpu"})
    if slices <= 1:
        return create_device_mesh(sizes, devices, **split)
    data, *others = sizes
    if data % slices:
        raise UserError(
            f"config.mesh.data = {data} is not divisible by {slices} slices, between which copies "
            f"of the model are split; use {slices} or a multiple of it"
        )
    between = (slices, *(1 for _ in others))
    return create_hybrid_device_mesh((data // slices, *others), between, devices, **split)


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch_size: int, grad_accum_steps: int) -> None:
    """Raises UserError where the rows of one part of a batch cannot be split over the devices."""
    shards = batch_parts(mesh)
    unit = shards * grad_accum_steps
    if batch_size % unit:
        lower = batch_size - batch_size % unit
        choice = f"{lower} or {lower + unit}" if lower else f"{unit}"
        parts = f" x {grad_accum_steps} parts" if grad_accum_steps > 1 else ""
        raise UserError(
            f"config.batch_size = {batch_size} is not divisible by {shards} devices (data x fsdp)"
            f"{parts}; use {choice}"
        )


def check_heads(mesh: Mesh, num_heads: int, num_kv_heads: int) -> None:
    """Raises UserError where attention's heads cannot be split over the tensor axis."""
    for name, count in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
        if count % mesh.shape["tensor"]:
            raise UserError(
                f"config.model.{name} = {count} is not divisible by config.mesh.tensor = "
                f"{mesh.shape['tensor']}; change one of them"
            )


def check_positions(mesh: Mesh, seq_len: int) -> None:
    """Raises UserError where the positions of a row cannot be split over the sequence axis."""
    parts = mesh.shape[SEQUENCE_AXIS]
    if seq_len % parts:
        lower = seq_len - seq_len % parts
        choice = f"{lower} or {lower + parts}" if lower else f"{parts}"
        raise UserError(
            f"config.data.seq_len = {seq_len} is not divisible by config.mesh.sequence = {parts}; "
            f"use {choice}"
        )


def sequence_parts() -> int:
    """Over how many devices the mesh in use splits the positions of a row.

    1 where no mesh is in use, and within a `jax.shard_map` over the sequence axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or SEQUENCE_AXIS in mesh.manual_axes:
        return 1
    return mesh.shape.get(SEQUENCE_AXIS, 1)


def split_positions(x: jax.Array, axis: int = 1) -> jax.Array:
    """The same array; where the mesh in use splits positions, `axis` is split over its devices."""
    return _constrained(x, axis, SEQUENCE_AXIS)


def gather_positions(x: jax.Array, axis: int = 1) -> jax.Array:
    """The same array; where the mesh in use splits positions, `axis` is whole on every device."""
    return _constrained(x, axis, None)


def split_heads(x: jax.Array) -> jax.Array:
    """The same array [B, S, heads, K]; where a mesh is in use, rows are split over data and fsdp,
    heads over tensor, where they divide, and nothing else is: for kernels with no other layout.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    spec = (
        BATCH_AXES if x.shape[0] % batch_parts(mesh) == 0 else None,
        None,
        "tensor" if x.shape[2] % mesh.shape["tensor"] == 0 else None,
        None,
    )
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def divides(batch_size: int, heads: int) -> bool:
    """Whether the mesh in use, if any, splits rows and heads evenly."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return True
    return batch_size % batch_parts(mesh) == 0 and heads % mesh.shape[HEADS_AXIS] == 0


def over_rows_and_heads(
    function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], per_row: Any, per_head: Any
) -> jax.Array:
    """`function(*arrays, per_row, per_head)` on every device for its rows and heads, for kernels
    that the compiler cannot split.

    Args:
      function: gives [B, S, H, K].
      arrays: [B, S, H or G, K].
      per_row: a pytree of arrays [B or 1, ...].
      per_head: a pytree of arrays [H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays, per_row, per_head)
    split = PartitionSpec(BATCH_AXES, None, HEADS_AXIS)
    rows = jax.tree.map(lambda x: PartitionSpec(BATCH_AXES if x.shape[0] > 1 else None), per_row)
    heads = jax.tree.map(lambda _: PartitionSpec(HEADS_AXIS), per_head)
    return jax.shard_map(
        function, in_specs=(*(split for _ in arrays), rows, heads), out_specs=split, check_vma=False
    )(*arrays, per_row, per_head)


def _constrained(x: jax.Array, axis: int, name: str | None) -> jax.Array:
    if sequence_parts() == 1:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = name
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def local_places(mesh: Mesh, batch_size: int) -> list[int]:
    """The places in a batch of the rows that devices of this process hold, in order.

    Processes whose devices differ along the axes sequence and tensor alone hold the same.
    """
    size = batch_size // batch_parts(mesh)
    return [part * size + row for part in _local_parts(mesh) for row in range(size)]


def _local_parts(mesh: Mesh) -> list[int]:
    """Which of the `batch_parts` devices of this process hold, in order."""
    whole = (batch_parts(mesh),)
    found = batch_sharding(mesh).addressable_devices_indices_map(whole).values()
    return sorted({range(*whole)[index[0]].start for index in found if index is not None})


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over data and fsdp, everything behind the first axis whole: tokens are few bytes,
    and a row has one more than positions.
    """
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(mesh: Mesh, params: Any, tree: Any) -> Any:
    """Shardings for `tree`, a pytree of abstract arrays that holds `params`-shaped subtrees.

    A leaf follows a parameter's rule where its path ends in the parameter's and the shapes agree
    (the parameters themselves, moments, moving averages); every other leaf is whole.

    Raises:
      UserError: where a rule's axis does not divide a dimension.
    """
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        specs[name] = (leaf.shape, _spec(mesh, name, leaf.shape))

    def sharding(path, leaf) -> NamedSharding:
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, spec = specs.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        return whole(mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def global_batch(mesh: Mesh, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The arrays over all processes, of which `rows` are those at this one's `local_places`."""
    sharding, parts = batch_sharding(mesh), _local_parts(mesh)

    def array(local: np.ndarray) -> jax.Array:
        split = np.split(local, len(parts))
        size = len(split[0])

        def part(index: Any) -> np.ndarray:
            return split[parts.index((index[0].start or 0) // size)]

        shape = (size * batch_parts(mesh), *local.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: array(local) for name, local in rows.items()}


def path_name(path: tuple[Any, ...]) -> str:
    """A parameter's path in a tree as its name, such as "stack/layer_0/attention/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(mesh: Mesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    axes = next((axes for pattern, axes in _RULES if re.search(pattern, name)), ())
    axes = (None,) * (len(shape) - len(axes)) + axes
    if re.search(_OF_VOCAB, name) and shape[axes.index(VOCAB_AXIS)] % mesh.shape[VOCAB_AXIS]:
        axes = _without_vocab(mesh, shape, axes)
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and size % _devices(mesh, axis):
            raise UserError(
                f"parameter {name} {list(shape)}: {size} is not divisible by config.mesh.{axis} = "
                f"{mesh.shape[axis]}; change the size or the mesh"
            )
    return PartitionSpec(*axes)


def _without_vocab(mesh: Mesh, shape: tuple[int, ...], axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The axes of a table whose tokens do not divide: its features are split in their place."""
    rest = tuple(None if axis == VOCAB_AXIS else axis for axis in axes)
    last = rest[-1]
    if last is None or shape[-1] % _devices(mesh, (last, VOCAB_AXIS)):
        return rest
    return (*rest[:-1], (last, VOCAB_AXIS))


def _devices(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    """Over how many devices these axes split."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
