"""Exports a run in a format, with tokenizer, manifest and certificate beside it."""

import pathlib
from typing import Any

import jax

from lm.checkpoints.export.certificate import certify
from lm.checkpoints.export.formats import FORMATS, Format, check_installed
from lm.checkpoints.export.function import ExportedFunction, exported_function
from lm.checkpoints.export.hf_folder import export_adapter, export_gguf, export_hf, first_base
from lm.checkpoints.hf.tokenizer_writer import base_settings, write_tokenizer
from lm.checkpoints.restored import Restored
from lm.config import to_dict
from lm.data.files import write_json
from lm.errors import UserError

HF, GGUF = "hf", "gguf"
# What transformers reads, whose masks do not tell the texts of a row apart.
_OF_TRANSFORMERS = {HF: export_hf, GGUF: export_gguf}
NAMES = (*_OF_TRANSFORMERS, *FORMATS)
_QUANTIZED = ("stablehlo",)  # formats that hold quantized weights
MANIFEST = "export.json"


def export(
    run: Restored, kind: str, folder: str, *, adapter: bool = False, certified: bool = True
) -> tuple[list[str], bool]:
    """Writes a new folder, and measures it by the runtime that it is for.

    Args:
      run: what is exported.
      kind: one of `NAMES`.
      folder: where to; new, or empty.
      adapter: write what LoRA added alone, for peft; it has no certificate.
      certified: compare it with the run over held-out rows.

    Returns:
      Lines that say what was written and how near it is, and whether that is near enough.

    Raises:
      UserError: the folder is not empty, a package is missing, or the format cannot hold the run.
    """
    if kind not in NAMES:
        raise UserError(f"--format={kind} is none of {', '.join(NAMES)}")
    path = pathlib.Path(folder).expanduser()
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty; give a new folder to write to")
    if adapter:
        if kind != HF:
            raise UserError(f"--adapter is for peft, and not for --format={kind}; leave it out")
        return [f"written: {path}, {export_adapter(run, path)}"], True
    if run.compression and kind not in _QUANTIZED:
        raise UserError(
            f"--format={kind} holds weights in float32; with --compress={run.compression} use "
            f"--format={', '.join(_QUANTIZED)}"
        )
    function = exported_function(run)
    theirs = kind in _OF_TRANSFORMERS
    if theirs:
        if certified:
            remedy = "pip install torch transformers, or add --certify=False"
            check_installed(f"a certificate of --format={kind}", ("torch", "transformers"), remedy)
        lines = [f"written: {path}, {_OF_TRANSFORMERS[kind](run, path)}"]
    else:
        lines = [f"written: {path}, {_write(kind, FORMATS[kind], run, function, path)}"]
    if not certified:
        return lines, True
    certificate = certify(kind, path, run, function, packed=not theirs)
    certificate.write(path)
    return [*lines, str(certificate)], certificate.passed


def _write(
    kind: str, form: Format, run: Restored, function: ExportedFunction, path: pathlib.Path
) -> str:
    """Writes the model and what stands beside it; says which sizes are a caller's."""
    form.check(kind, function)
    free = function.free_sizes() if form.free else ()
    shapes = function.shapes(free)
    path.mkdir(parents=True, exist_ok=True)
    form.write(function, shapes, path / form.file)
    base, layout = first_base(run.config), run.task_layout[2] if run.config.task.name else None
    settings = None if base is None else base_settings(base.folder)
    write_tokenizer(path, run.config, run.tokenizer, settings, layout)
    write_json(path / "config.json", to_dict(run.config))
    write_json(path / MANIFEST, _manifest(kind, form, run, function, shapes))
    fixed = ", ".join(f"{k} {v}" for k, v in function.sizes.items() if k not in free)
    return f"a model of any {', '.join(free)}" if not fixed else f"a model of {fixed}"


def _manifest(
    kind: str,
    form: Format,
    run: Restored,
    function: ExportedFunction,
    shapes: dict[str, jax.ShapeDtypeStruct],
) -> dict[str, Any]:
    """What a caller of the model has to know: its arguments, its result and its labels."""
    result = jax.eval_shape(function, *shapes.values())

    def described(name: str, x: jax.ShapeDtypeStruct) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) else str(size) for size in x.shape]
        return {"name": name, "shape": sizes, "dtype": str(x.dtype)}

    return {
        "format": kind,
        "file": form.file,
        "step": run.step,
        "compression": run.compression or None,
        "inputs": [described(name, x) for name, x in shapes.items()],
        "output": described(function.output, result),
        "labels": list(run.program.labels),
        "max_length": function.max_length,
        "versions": {"jax": jax.__version__},
    }
