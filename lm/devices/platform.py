"""The kind of device that a program is made for: that of the mesh in use, whose devices may be only
described, so that a program for a TPU can be compiled on a laptop; or none, where other runtimes
are to run it.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax


class Device(Protocol):
    """A device, or the description of one."""

    @property
    def platform(self) -> str:
        """Such as "cpu", "gpu", "tpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """Its model, such as "TPU v5 lite"."""
        ...


def target_device() -> Device:
    """A device of the mesh that `jax.set_mesh` set; without a mesh, JAX's default device."""
    described: Any = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described
    default: Any = jax.default_device.value
    return jax.devices(default)[0] if default is None or isinstance(default, str) else default


PORTABLE = "portable"
_for_others: Any = jax.make_user_context(False)  # what JAX has traced in one is not used in another


def portable() -> AbstractContextManager[None]:
    """Within it programs are made for other runtimes: in plain operations, without the loops,
    barriers and layouts by which one kind of device gains.
    """
    return _for_others(True)


def platform() -> str:
    """The platform of `target_device`: "cpu", "gpu", "tpu", ...; `PORTABLE` within `portable`."""
    if _for_others.value:
        return PORTABLE
    name = target_device().platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_count() -> int:
    """How many devices the mesh in use has; without a mesh, how many there are."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size
