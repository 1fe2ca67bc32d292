"""Certifies an exported folder: how far what its own runtime computes of held-out rows is from what
the run computes here.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm.checkpoints.export.function import ExportedFunction, Params, outputs
from lm.checkpoints.restored import Restored
from lm.config import replace_within
from lm.data.batches import eval_batches
from lm.data.files import write_json
from lm.errors import UserError
from lm.model.batch import Batch
from lm.output import OUTPUTS

TOLERANCE = 1e-4  # nats of a log-probability, or what a value is predicted in
FILE = "certificate.json"
_MOST_ROWS, _MOST_BYTES = 32, 2**28
# Log-probabilities below are of probabilities that are zero in float32, and count as equal.
_ZERO = float(np.log(np.finfo(np.float32).tiny))


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How far two computations of the same rows are from each other.

    Attributes:
      format: of the export.
      runtime, version: what computed it there.
      measure: of what the differences are: "log_probs", "values", or, of a head that gives
        probabilities of exactly zero, "probs".
      rows, positions: held-out rows, and their positions that evaluation counts.
      max_difference, mean_difference: absolute, over positions and classes.
      argmax_agreement: the share of positions whose likeliest class is the same; None of values.
      source, hash: of the text or the examples.
      tolerance: the largest difference that passes.
      versions: of the packages that computed it here.
    """

    format: str
    runtime: str
    version: str
    measure: str
    rows: int
    positions: int
    max_difference: float
    mean_difference: float
    argmax_agreement: float | None
    source: str
    hash: str
    versions: Mapping[str, str]
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether the largest difference is within the tolerance; NaN is not."""
        return self.max_difference <= self.tolerance

    def __str__(self) -> str:
        agree = self.argmax_agreement
        share = "" if agree is None else f", the same argmax at {100 * agree:.2f} %"
        verdict = "certified" if self.passed else "NOT CERTIFIED"
        return (
            f"{verdict}: {self.measure} of {self.runtime} {self.version} within "
            f"{self.max_difference:.2g} (tolerance {self.tolerance:g}){share}, over "
            f"{self.positions} positions of {self.rows} held-out rows"
        )

    def write(self, folder: pathlib.Path) -> None:
        """Writes certificate.json."""
        write_json(folder / FILE, {"passed": self.passed, **dataclasses.asdict(self)})


def certify(
    kind: str,
    folder: pathlib.Path,
    run: Restored,
    function: ExportedFunction,
    *,
    packed: bool = True,
) -> Certificate:
    """Measures a format's folder over held-out rows of a run; see `Certificate`.

    Args:
      kind: the format.
      folder: of the export.
      run: what was exported.
      function: its function.
      packed: whether the format's masks tell the texts of a row apart; else each row's first is
        read alone.
    """
    batch = held_out(run, function)
    if not packed:
        batch = first_texts(batch)
    ours = reference(run, batch)
    theirs, told = measured(kind, folder, function.arrays(batch))
    if theirs.shape != ours.shape:
        raise UserError(
            f"{told['runtime']} gives an output of shape {list(theirs.shape)} for {folder}, which "
            f"is {list(ours.shape)} here; this format cannot hold the model"
        )
    counted = np.asarray(batch.weights) > 0
    measure, agreement = function.output, None
    if measure == "log_probs":
        agreement = float(np.mean((ours.argmax(-1) == theirs.argmax(-1))[counted]))
        if not OUTPUTS[run.program.model.config.head.head].full_support:
            measure, ours, theirs = "probs", np.exp(ours), np.exp(theirs)
        else:
            ours, theirs = np.maximum(ours, _ZERO), np.maximum(theirs, _ZERO)
    difference = np.abs(ours - theirs)[counted]
    return Certificate(
        format=kind,
        measure=measure,
        rows=len(batch.inputs),
        positions=int(counted.sum()),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        argmax_agreement=agreement,
        source=str(run.corpus.manifest["source"]),
        hash=str(run.corpus.manifest["hash"]),
        versions={"jax": jax.__version__},
        **told,
    )


def held_out(run: Restored, function: ExportedFunction) -> Batch:
    """A batch of held-out rows, as evaluation asks them, whose outputs fit in memory."""
    rows = run.corpus.rows("validation")
    shapes = [x.shape for x in function.shapes(()).values()]
    row = jax.eval_shape(function, *(jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes))
    most = min(_MOST_ROWS, len(rows), max(1, _MOST_BYTES // (row.size * row.dtype.itemsize)))
    found = next(iter(eval_batches(rows, batch_size=most, limit=most)))
    return run.program.objective(jax.tree.map(jnp.asarray, found), jax.random.key(0))


def first_texts(batch: Batch) -> Batch:
    """The first text of each row, and nothing that a decoder's earlier positions see."""
    if batch.inputs.ndim > 2:
        return batch
    segments = batch.segments
    first = segments == segments[:, :1]
    targets = batch.weights.shape[1]
    counted = first if targets == first.shape[1] else jnp.arange(targets) == 0
    if batch.target_positions is not None:
        counted = jnp.take_along_axis(first, batch.target_positions, axis=1)
    encoder = batch.encoder_segments
    return dataclasses.replace(
        batch,
        segments=jnp.where(first, 1, 0),
        weights=jnp.where(counted, batch.weights, 0.0),
        encoder_segments=None if encoder is None else jnp.where(encoder == encoder[:, :1], 1, 0),
        prefix=None,
    )


def reference(run: Restored, batch: Batch) -> np.ndarray:
    """What a run's own model gives, on the host's processor in float32."""
    model = run.program.model
    config = replace_within(model.config, dtype="float32", param_dtype="float32")
    model = model.clone(config=config, outputs=dataclasses.replace(model.outputs, shards=None))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params: Params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), run.params)
        found = jax.jit(outputs, static_argnums=0)(model, params, batch)
        return np.asarray(found)


def measured(
    kind: str, folder: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The outputs of a format's own runtime in another process, and its name and version."""
    root = str(pathlib.Path(lm.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = pathlib.Path(scratch, "inputs.npz"), pathlib.Path(scratch, "outputs.npy")
        np.savez(inputs, allow_pickle=False, **arrays)
        command = [sys.executable, "-m", "lm.checkpoints.export.runtimes"]
        done = subprocess.run(
            [*command, kind, str(folder.resolve()), str(inputs), str(outputs)],
            env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            raise UserError(f"the runtime of --format={kind} cannot run {folder}: {last:.300}")
        return np.load(outputs), json.loads(done.stdout.splitlines()[-1])
