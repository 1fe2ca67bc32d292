"""Which tensors does a folder hold? One mapping by name, from safetensors (whole or in shards) or a
legacy pytorch_model.bin; each is read from disk slice by slice, when it is asked for.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.pretrained.pickled import read_pickled
from lm.pretrained.view import Tensor

SAFE, LEGACY = "model.safetensors", "pytorch_model.bin"


@dataclasses.dataclass(frozen=True)
class _Safe:
    """A tensor of a safetensors file."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.file.get_slice(self.name)[index]


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name; nothing but their names is read yet.

    Raises:
      UserError: where the folder has no weights, or they are damaged.
    """
    readers: dict[str, Any] = {SAFE: _open_safe, LEGACY: read_pickled}
    for name, read in readers.items():
        index = folder / f"{name}.index.json"
        if index.exists():
            return _open_shards(folder, _shards(index), read)
        if (folder / name).exists():
            return read(folder / name)
    raise UserError(
        f"{folder} has neither {SAFE} nor {LEGACY}; give a folder that transformers saved"
    )


def _shards(index: Path) -> Mapping[str, str]:
    try:
        return dict(json.loads(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index} is no index of shards; fetch it again") from None


def _open_shards(folder: Path, shards: Mapping[str, str], read: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if not (folder / shard).exists():
            raise UserError(f"{folder} lacks {shard}, one of its shards; fetch it again")
        tensors |= read(folder / shard)
    return tensors


def _open_safe(path: Path) -> dict[str, Tensor]:
    import safetensors

    try:
        file: Any = safetensors.safe_open(path, framework="np")
        return {name: _Safe(file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is truncated or damaged ({' '.join(str(error).split())}); fetch it again"
        ) from None
