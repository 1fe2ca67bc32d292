"""Writes a function in the formats of other runtimes. `FORMATS` has each by its name."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax import export

from lm.checkpoints.export.function import ExportedFunction
from lm.checkpoints.export.jaxpr_to_onnx import to_onnx
from lm.checkpoints.export.litert import to_litert
from lm.errors import UserError

Shapes = Mapping[str, jax.ShapeDtypeStruct]
_EXTRA = 'pip install -e ".[export]"'
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Protocol buffers and FlatBuffers end at 2 GiB.
_MOST_BYTES = 2**31 - 2**26


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of another runtime.

    Attributes:
      file: of the model, in the folder.
      write: puts a function with arguments of these shapes into a file.
      packages: the modules that writing and running it need.
      free: whether a caller may choose batch size and length.
      limited: whether its one file has all parameters, of which 2 GB fit.
    """

    file: str
    write: Callable[[ExportedFunction, Shapes, Path], None]
    packages: tuple[str, ...] = ()
    free: bool = True
    limited: bool = True

    def check(self, name: str, function: ExportedFunction) -> None:
        """Raises UserError where a package is missing, or the parameters do not fit."""
        check_installed(f"--format={name}", self.packages)
        size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(function.params))
        if self.limited and size > _MOST_BYTES:
            raise UserError(
                f"--format={name} holds 2 GB in its file, and the parameters are "
                f"{size / 1e9:.1f} GB; use --format=onnx, whose parameters lie beside it"
            )


def check_installed(what: str, packages: tuple[str, ...], remedy: str = _EXTRA) -> None:
    """Raises UserError where a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {missing[0]}, which is not installed; {remedy}")


def _write_stablehlo(function: ExportedFunction, shapes: Shapes, path: Path) -> None:
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes.values())
    path.write_bytes(exported.serialize())


def _write_onnx(function: ExportedFunction, shapes: Shapes, path: Path) -> None:
    import onnx  # pyright: ignore[reportMissingImports]

    model = to_onnx(function.compute, function.params, shapes, function.output)
    data = path.with_name(f"{path.name}.data")
    beside = {"location": data.name, "size_threshold": 1024}
    onnx.save_model(model, str(path), save_as_external_data=True, **beside)
    data.chmod(path.stat().st_mode)  # the package leaves it to its owner alone


def _write_litert(function: ExportedFunction, shapes: Shapes, path: Path) -> None:
    exported = export.export(jax.jit(function), platforms=PLATFORMS[:1])(*shapes.values())
    path.write_bytes(to_litert(exported, tuple(shapes), function.output))


FORMATS = {
    "stablehlo": Format("model.stablehlo", _write_stablehlo, ("flatbuffers",)),
    "onnx": Format("model.onnx", _write_onnx, ("onnx", "onnxruntime"), limited=False),
    "litert": Format(
        "model.tflite", _write_litert, ("litert_converter", "ai_edge_litert"), free=False
    ),
}
