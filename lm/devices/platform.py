"""Names the kind of device that a program is made for: that of the mesh in use, which may be of
devices that are only described, so that a program for a TPU can be compiled on a laptop.
"""

import jax
from jax.sharding import AbstractDevice


def target_device() -> jax.Device | AbstractDevice:
    """A device of the mesh that `jax.set_mesh` set; without a mesh, JAX's default device."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described
    default = jax.config.jax_default_device
    return default if isinstance(default, jax.Device) else jax.devices(default)[0]


def platform() -> str:
    """The platform of `target_device`: "cpu", "gpu", "tpu", ..."""
    name = target_device().platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_count() -> int:
    """How many devices the mesh in use has; without a mesh, how many there are."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size
