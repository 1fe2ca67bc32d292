"""Runs an exported folder by the target's own runtime, in a process of its own:

    python -m lm.checkpoints.export.runtimes FORMAT FOLDER INPUTS.npz OUTPUTS.npy

Reads the arguments, [N, ...] by name, and writes the outputs of N rows; prints the runtime's name
and version.
"""

import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]


def _stablehlo(folder: pathlib.Path) -> tuple[Run, str]:
    import jax.export

    exported = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    return lambda arrays: np.asarray(exported.call(*arrays.values())), "jax"


def _onnx(folder: pathlib.Path) -> tuple[Run, str]:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=providers)
    return lambda arrays: np.asarray(session.run(None, dict(arrays))[0]), "onnxruntime"


def _litert(folder: pathlib.Path) -> tuple[Run, str]:
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter = Interpreter(model_path=str(folder / "model.tflite"))
    run = interpreter.get_signature_runner()
    (output,) = run.get_output_details()
    return lambda arrays: run(**arrays)[output], "ai-edge-litert"


def _gguf(folder: pathlib.Path) -> tuple[Run, str]:
    """By the reader of GGUF files that transformers has."""
    import torch
    import transformers

    given = {"gguf_file": "model.gguf", "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **given).eval()

    def run(arrays: Arrays) -> np.ndarray:
        with torch.inference_mode():
            found = model(**{name: torch.as_tensor(x).long() for name, x in arrays.items()})
        return torch.log_softmax(found.logits, -1).numpy()

    return run, "transformers"


def _transformers(folder: pathlib.Path) -> tuple[Run, str]:
    """Log-probabilities as the run's head gives them: of padding none, of an answer's ends both."""
    import torch
    import transformers

    settings = json.loads((folder / "config.json").read_text())
    kind = settings["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()

    def run(arrays: Arrays) -> np.ndarray:
        given = {name: torch.as_tensor(x).long() for name, x in arrays.items()}
        at, real = given.pop("target_positions", None), given["attention_mask"] > 0
        if (padding := settings.get("pad_token_id")) is not None:
            given["input_ids"] = given["input_ids"].masked_fill(~real, padding)
        with torch.inference_mode():
            found = model(**given)
        if kind.endswith("ForQuestionAnswering"):
            logits = torch.stack([found.start_logits, found.end_logits], 1)
            logits = logits.masked_fill(~real[:, None], -1e4)
        elif kind.endswith("ForSequenceClassification"):
            logits = found.logits[:, None]
            if settings["problem_type"] == "regression":
                return logits[:, :, 0].numpy()
        elif kind.endswith("ForTokenClassification"):
            assert at is not None
            logits = torch.take_along_dim(found.logits, at[:, :, None], 1)
        else:
            logits = found.logits
        return torch.log_softmax(logits, -1).numpy()

    return run, "transformers"


RUNTIMES: dict[str, Callable[[pathlib.Path], tuple[Run, str]]] = {
    "stablehlo": _stablehlo,
    "onnx": _onnx,
    "litert": _litert,
    "hf": _transformers,
    "gguf": _gguf,
}


def _batches(inputs: Arrays, size: int) -> Iterator[dict[str, np.ndarray]]:
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, size):
        yield {name: array[start : start + size] for name, array in inputs.items()}


def main(kind: str, folder: str, inputs: str, outputs: str) -> None:
    """Runs a format's folder over rows, a few at a time."""
    run, package = RUNTIMES[kind](pathlib.Path(folder))
    arrays = dict(np.load(inputs))
    found = [run(batch) for batch in _batches(arrays, 1 if kind == "litert" else 4)]
    np.save(outputs, np.concatenate(found))
    print(json.dumps({"runtime": package, "version": importlib.metadata.version(package)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
