"""Names of machines as Cloud TPU gives them, such as v5e-16, and the chips, hosts and topology that
stand behind each; likewise of GPUs (h100-8) and of a CPU's cores (cpu-8).
"""

import dataclasses
import math
from collections.abc import Mapping

from lm.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class SliceSpec:
    """A machine of one or several hosts whose devices run one program.

    Attributes:
      name: its usual name, such as "v5e-16".
      accelerator: the part before the number: "v5e", "h100", "cpu".
      kind: "tpu", "gpu" or "cpu".
      chips: TPU chips or GPUs; of a CPU, cores.
      hosts: machines, each of which runs one process.
      topology: how the chips of a TPU are arranged, such as "4x4"; "" elsewhere.
    """

    name: str
    accelerator: str
    kind: str
    chips: int
    hosts: int = 1
    topology: str = ""

    @property
    def chips_per_host(self) -> int:
        """The same on every host."""
        return self.chips // self.hosts


_PLANE = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBE = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

# Topologies of each TPU, how many the number of a name counts for each chip (TensorCores or the
# chip itself), and how many chips of a slice one host has at most.
_TPUS = {
    "v4": (_CUBE, 2, 4),
    "v5e": (_PLANE, 1, 8),
    "v5p": (f"{_CUBE} 16x16x16 16x16x24", 2, 4),
    "v6e": (_PLANE, 1, 8),
    "tpu7x": (_CUBE, 2, 4),
}
_GPUS = ("l4", "a100", "h100", "h200", "b200")
_SAME = {"v5litepod": "v5e", "v7x": "tpu7x"}
_GPU_HOST, _MOST_HOSTS, _MOST_CORES = 8, 64, 1024


def _slices() -> Mapping[str, SliceSpec]:
    found = []
    for accelerator, (topologies, counted, most) in _TPUS.items():
        for topology in topologies.split():
            chips = math.prod(map(int, topology.split("x")))
            hosts = 1 if chips <= most else chips // 4  # several hosts have four chips each
            name = f"{accelerator}-{chips * counted}"
            found.append(SliceSpec(name, accelerator, "tpu", chips, hosts, topology))
    for accelerator in _GPUS:
        of_hosts = [_GPU_HOST * hosts for hosts in range(2, _MOST_HOSTS + 1)]
        for chips in (1, 2, 4, 8, *of_hosts):
            hosts = max(1, chips // _GPU_HOST)
            found.append(SliceSpec(f"{accelerator}-{chips}", accelerator, "gpu", chips, hosts))
    found += [SliceSpec(f"cpu-{cores}", "cpu", "cpu", cores) for cores in range(1, _MOST_CORES + 1)]
    return {each.name: each for each in found}


SLICES = _slices()


def find_slice(name: str) -> SliceSpec:
    """The machine of a name; v5litepod-16 is v5e-16.

    Raises:
      UserError: there is none, with the sizes or the nearest name that there is.
    """
    accelerator, _, number = name.lower().partition("-")
    accelerator = _SAME.get(accelerator, accelerator)
    if (found := SLICES.get(f"{accelerator}-{number}")) is not None:
        return found
    accelerators = ("cpu", *_GPUS, *_TPUS)
    if accelerator in _TPUS:
        sizes = ", ".join(each for each in SLICES if each.startswith(f"{accelerator}-"))
        raise UserError(f"--on={name} is no slice of Cloud TPU; use {sizes}")
    if accelerator in _GPUS:
        raise UserError(
            f"--on={name} is no machine; use {accelerator}-1, 2, 4, 8, or a multiple of 8 up to "
            f"{_GPU_HOST * _MOST_HOSTS}, 8 on each host"
        )
    if accelerator == "cpu":
        raise UserError(
            f"--on={name} is no machine; use cpu-1 to cpu-{_MOST_CORES}, the cores of one"
        )
    raise UserError(
        f"--on={name} is no machine; use the name of a slice such as v5e-16, h100-8 or cpu-8, of "
        f"{', '.join(accelerators)}{nearest(accelerator, accelerators)}"
    )
