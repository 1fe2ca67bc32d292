"""Which tensors does a folder hold? One mapping by name, from safetensors (whole or in shards) or a
legacy pytorch_model.bin; each is read from disk slice by slice, when it is asked for.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lm.checkpoints.hf.pickled import read_pickled
from lm.checkpoints.hf.view import Tensor
from lm.data.files import read_json
from lm.errors import UserError

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
        try:
            return self.file.get_slice(self.name)[index]
        except (AttributeError, TypeError, ValueError) as error:  # types that numpy has none of
            kind = self.file.get_slice(self.name).get_dtype()
            raise UserError(
                f"{self.name} is stored as {kind}, which cannot be read ({error}); use a "
                "checkpoint in float32, float16 or bfloat16"
            ) from None


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name; nothing but their names is read yet.

    Raises:
      UserError: where the folder has no weights, or they are damaged.
    """
    readers: dict[str, Any] = {SAFE: _open_safe, LEGACY: read_pickled}
    for name, read in readers.items():
        index = folder / f"{name}.index.json"
        if index.exists():
            return _open_shards(_shards(index), read)
        if (folder / name).exists():
            return read(folder / name)
    raise UserError(
        f"{folder} has neither {SAFE} nor {LEGACY}; give a folder that transformers saved"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie in its folder; what a link there leads to is the
    user's own doing.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
        raise UserError(f"{index} is no index of shards; fetch it again")
    shards = sorted(set(places.values()))
    for shard in shards:
        path = PurePosixPath(shard.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.name or ":" in shard:
            raise UserError(
                f"{index} names the shard {shard[:80]!r}, which leads out of its folder; fetch it "
                "again, from a source that you trust"
            )
        if not (index.parent / shard).is_file():
            raise UserError(f"{index.parent} lacks {shard}, one of its shards; fetch it again")
    return [index.parent / shard for shard in shards]


def _open_shards(shards: Sequence[Path], read: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read(shard)
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
