"""How are the tensors of a pytorch_model.bin read without torch, and without running anything that
it says? By an unpickler that knows six names and refuses every other, and a map of the file.

Such a file is a pickle of records that point at storages, which lie in the same file: as members of
a zip archive (since torch 1.6), or one after the other behind the pickle (before it).
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from lm.errors import UserError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError,
    AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError,
    MemoryError, OverflowError, RecursionError, AssertionError,
)  # fmt: skip


@dataclasses.dataclass
class _Storage:
    """Numbers in the file; where they begin is known once the pickle is read."""

    key: str
    dtype: Any
    size: int


@dataclasses.dataclass
class _Strided:
    """A tensor: every which number of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickled(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a pytorch_model.bin by name, mapped from disk.

    Raises:
      UserError: where the file is damaged, or names anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                state, offsets = _read_archive(file)
            else:
                state, offsets = _read_stream(file)
        mapped = np.memmap(path, np.uint8, "r")
        return {
            str(name): _array(mapped, record, offsets)
            for name, record in state.items()
            if isinstance(record, _Strided)
        }
    except _DAMAGED as error:
        raise UserError(
            f"{path} is truncated or no checkpoint of torch ({type(error).__name__}: {error}); "
            "fetch it again"
        ) from None


def _read_archive(file: BinaryIO) -> tuple[Mapping[str, Any], dict[str, int]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (root,) = (name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl"))
        # torch compresses nothing: what is stored as it is can be no larger than the file.
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise zipfile.BadZipFile("its members are compressed")
        state = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        offsets = {}
        for member in archive.infolist():
            if member.filename.startswith(f"{root}data/"):
                # The local header has lengths of its own: 30 bytes, the name and an extra field.
                file.seek(member.header_offset + 26)
                lengths = struct.unpack("<HH", file.read(4))
                offset = member.header_offset + 30 + sum(lengths)
                offsets[member.filename.removeprefix(f"{root}data/")] = offset
    return state, offsets


def _read_stream(file: BinaryIO) -> tuple[Mapping[str, Any], dict[str, int]]:
    file.seek(0)
    if _Unpickler(file).load() != _OLD_MAGIC:
        raise pickle.UnpicklingError("its first bytes are no checkpoint's")
    _Unpickler(file).load()  # protocol
    _Unpickler(file).load()  # of the machine that wrote it
    unpickler = _Unpickler(file)
    state = unpickler.load()
    offsets = {}
    for key in _Unpickler(file).load():
        (size,) = struct.unpack("<q", file.read(8))
        offsets[key] = file.tell()
        storage = unpickler.storages[key]
        if size != storage.size:
            raise pickle.UnpicklingError(f"storage {key} has {size} numbers, not {storage.size}")
        file.seek(size * np.dtype(storage.dtype).itemsize, io.SEEK_CUR)
    return state, offsets


def _array(mapped: np.ndarray, record: _Strided, offsets: Mapping[str, int]) -> np.ndarray:
    storage, dtype = record.storage, np.dtype(record.storage.dtype)
    start = offsets[storage.key]
    numbers = mapped[start : start + storage.size * dtype.itemsize].view(dtype)
    steps = zip(record.shape, record.strides, strict=True)
    last = record.offset + sum((size - 1) * stride for size, stride in steps)
    inside = numbers.size == storage.size and last < numbers.size
    # Nor is it one number over and over again, which could be of any size.
    inside = inside and math.prod(record.shape) <= numbers.size
    if min((record.offset, *record.shape, *record.strides)) < 0 or not inside:
        raise pickle.UnpicklingError("a tensor reaches beyond the file")
    return np.lib.stride_tricks.as_strided(
        numbers[record.offset :],
        record.shape,
        [stride * dtype.itemsize for stride in record.strides],
        writeable=False,
    )


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Strided:
    return _Strided(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data: _Strided, *_: Any) -> _Strided:
    return data


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle._Unpickler):
    """Makes dictionaries, numbers, strings and the records above, and calls nothing else.

    It is the one in Python: the one in C makes room for as many objects as a file has remembered,
    by a number that the file itself gives. Arrays of bytes, which no checkpoint has, are unknown to
    it: room for one is made before it is read.
    """

    dispatch: ClassVar[Any] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A known name's stand-in."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in _KNOWN:
            raise UserError(
                f"the pickle asks for {module}.{name}, which no checkpoint needs; nothing was "
                "run: use the model's safetensors, or another source"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The record of a storage."""
        kind, dtype, key, _, size = pid[:5]
        known = any(dtype is each for each in _STORAGES.values())
        if kind != "storage" or not known or (len(pid) > 5 and pid[5] is not None):
            raise pickle.UnpicklingError("it points at what is no storage")
        return self.storages.setdefault(str(key), _Storage(str(key), dtype, int(size)))
