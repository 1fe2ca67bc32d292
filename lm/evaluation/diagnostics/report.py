"""Writes a diagnosis as diagnose.json and diagnose.png and formats it in lines."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.data.files import write_json
from lm.devices.hosts import is_main
from lm.evaluation.diagnostics import plot
from lm.evaluation.diagnostics.diagnosis import diagnose


def diagnose_run(run: Restored, num_contexts: int, workdir: epath.Path) -> list[str]:
    """Diagnoses a run, writes the result to the workdir, and returns it in lines."""
    with jax.set_mesh(run.program.mesh):
        found = {"step": run.step, **diagnose(run, num_contexts)}
    title = f"{workdir.name} at step {run.step}: head {run.config.output.head}"
    if is_main():
        write(found, title, workdir)
    written = f"written: {workdir / 'diagnose.json'} and diagnose.png"
    return [title, *lines(found), written]


def write(found: Mapping[str, Any], title: str, workdir: epath.Path) -> None:
    """Writes diagnose.json and diagnose.png."""
    write_json(workdir / "diagnose.json", found)
    plot.draw(found, title, workdir / "diagnose.png")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The numbers in lines of text."""
    sizes = "  {contexts} contexts x {vocab_size} tokens, d_model {d_model}"
    shown = [sizes.format(**found)]
    for key, (name, form) in _LINES.items():
        if key in found:
            numbers = found[key].get("unavailable") or form.format(**found[key])
            shown.append(f"  {name:30} {numbers}")
    return shown


_RANK = "rank {rank}, entropy rank {entropy_rank:.2f}"
# A name and a format for each measurement.
_LINES = {
    "spectrum": ("log-probabilities", _RANK),
    "spectrum_centred": ("minus each context's mean", _RANK),
    "spectrum_truth": ("true log-probabilities", _RANK),
    "gradient": (
        "surviving gradient",
        "{share:.4f} of the norm; random gradient {random_share:.4f}",
    ),
    "argmax": ("never the argmax", "{never} of a sample of {tokens} tokens"),
    "calibration": (
        "calibration",
        "error {expected_calibration_error:.4f} ({expected_by_chance:.4f} expected by chance), "
        "accuracy {accuracy:.4f}, {predictions:,} predictions",
    ),
}
