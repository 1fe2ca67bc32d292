"""Opens the tensors of a folder as one mapping by name, from safetensors (whole or in shards) or a
legacy pytorch_model.bin; each is read from disk slice by slice, when it is asked for.
"""

import dataclasses
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lm.checkpoints.hf.tensor_mapping import Tensor
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


@dataclasses.dataclass(frozen=True)
class _Torch:
    """A tensor of torch, mapped from a file."""

    tensor: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        part = self.tensor[index]  # numpy has no bfloat16, and float32 holds all of it
        return (part.float() if "bfloat16" in str(part.dtype) else part).numpy()


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name; nothing but their names is read yet.

    Raises:
      UserError: where the folder has no weights, or they are damaged.
    """
    for name, read in ((SAFE, _open_safe), (LEGACY, _open_torch)):
        index = folder / f"{name}.index.json"
        if index.exists():
            return {name: x for shard in _shards(index) for name, x in read(shard).items()}
        if (folder / name).exists():
            return read(folder / name)
    raise UserError(
        f"{folder} has neither {SAFE} nor {LEGACY}; give a folder that transformers saved"
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, in its folder; where a link there leads is not looked at."""
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


def _open_safe(path: Path) -> dict[str, Tensor]:
    import safetensors

    try:
        file: Any = safetensors.safe_open(path, framework="np")
        return {name: _Safe(file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is truncated or damaged ({' '.join(str(error).split())}); fetch it again"
        ) from None


def _open_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle. torch reads weights alone and runs nothing of what a file says."""
    try:
        import torch
    except ModuleNotFoundError:
        torch = None
    if torch is None or torch.__version__ < "2.6":  # older ones run what a file says
        raise UserError(
            f"{path} is a pickle of torch; to read it, pip install 'torch>=2.6', or give the "
            f"model's {SAFE}"
        )
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:  # torch compresses nothing
                if any(member.compress_type for member in archive.infolist()):
                    raise ValueError("its members are compressed")
        state = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
        named = {str(name): each for name, each in state.items() if isinstance(each, torch.Tensor)}
    except Exception as error:  # of any kind, as torch raises
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f"it asks for {name[1]}" if name else " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and not name:  # it tells how to run the file
            cause = "no pickle of tensors"
        raise UserError(
            f"{path} is damaged, or holds more than weights ({cause[:120]}); nothing was run: "
            f"fetch it again, or give the model's {SAFE}"
        ) from None
    return {name: _Torch(tensor.detach()) for name, tensor in named.items()}
