"""Converts StableHLO to LiteRT (TensorFlow Lite) by the package litert-converter, which needs no
TensorFlow.
"""

import importlib
import re
from collections.abc import Sequence

from jax.export import Exported

from lm.errors import UserError

SIGNATURE = "serving_default"  # the one that a file of LiteRT has where it has one
# Operations that are left over where others have become LiteRT's; a loop cannot be written.
_FOREIGN = re.compile(r"= \"?((?:stablehlo|chlo)\.\w+|tfl\.while|tfl\.custom)")


def to_litert(exported: Exported, inputs: Sequence[str], output: str) -> bytes:
    """The file of a function of fixed shapes.

    Args:
      exported: for a CPU.
      inputs: names of its arguments.
      output: name of its result.

    Raises:
      UserError: an operation has no form in LiteRT; one is a loop.
    """
    # Extensions without types.
    api, ir, passmanager, stablehlo = (
        importlib.import_module(f"litert_converter.{name}")
        for name in ("converter_api_ext", "mlir.ir", "mlir.passmanager", "mlir.dialects.stablehlo")
    )
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        api.set_signature(module.operation, SIGNATURE, list(inputs), [output])
        config = api.ConvertToTFLConfig()
        config.canonicalizing_inf_as_min_max_float = False  # masked scores are minus infinity
        try:
            api.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
            return api.export_flatbuffer_to_bytes(module.operation)
        except (ValueError, RuntimeError, ir.MLIRError):
            found = _FOREIGN.search(str(module))
            what = found[1] if found else "an operation of the model"
            raise UserError(f"litert has no form for {what}; use --format=stablehlo") from None
