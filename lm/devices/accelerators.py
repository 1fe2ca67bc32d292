"""What the makers of accelerators state of them: peak arithmetic, memory, and their bandwidths."""

from typing import NamedTuple

_GIB = 2**30


class Accelerator(NamedTuple):
    """A kind of device, as JAX counts them.

    Attributes:
      kind: what the `device_kind` of JAX begins with.
      peak_flops: dense bfloat16 FLOP/s.
      memory: bytes of its main memory that a program may take.
      bandwidth: bytes/s between that memory and the chip.
      link: bytes/s that it sends to the other devices of a slice or host, by all links together.
    """

    kind: str
    peak_flops: float
    memory: float
    bandwidth: float
    link: float


# The first whose kind is what a device's begins with.
#
# TPUs: docs.cloud.google.com/tpu/docs has a page for each version (v4, v5e, v5p, v6e, tpu7x), with
# the interconnect in both directions, of which half sends. Memory is what libtpu 0.0.42 leaves to
# programs, a little less than there is. A chip of TPU7x is two devices.
#
# GPUs: NVIDIA's data sheets of the SXM modules (80, 80 and 141 GB), which state NVLink in both
# directions too. JAX takes 0.75 of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
ACCELERATORS = (
    Accelerator("TPU v4", 275e12, 30.75 * _GIB, 1228e9, 300e9),
    Accelerator("TPU v5 lite", 197e12, 15.75 * _GIB, 819e9, 200e9),
    Accelerator("TPU v5", 459e12, 95.74 * _GIB, 2765e9, 600e9),
    Accelerator("TPU v6 lite", 918e12, 31.25 * _GIB, 1638e9, 400e9),
    Accelerator("TPU7x", 2307e12 / 2, 94.75 * _GIB, 7380e9 / 2, 600e9 / 2),
    Accelerator("NVIDIA A100", 312e12, 0.75 * 80e9, 2039e9, 300e9),
    Accelerator("NVIDIA H100", 989e12, 0.75 * 80e9, 3350e9, 450e9),
    Accelerator("NVIDIA H200", 989e12, 0.75 * 141e9, 4800e9, 450e9),
)


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The accelerator of a `device_kind`; None where it is not listed."""
    return next((each for each in ACCELERATORS if device_kind.startswith(each.kind)), None)
