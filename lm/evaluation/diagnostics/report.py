"""What does a diagnosis leave behind? Numbers, a picture, and a few lines to read."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from lm.data.files import write_json
from lm.evaluation.diagnostics import plot


def write(found: Mapping[str, Any], title: str, workdir: epath.Path) -> None:
    """Writes diagnose.json and diagnose.png."""
    write_json(workdir / "diagnose.json", found)
    plot.draw(found, title, workdir / "diagnose.png")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The numbers in words."""
    sizes = "  {contexts} contexts x {vocab_size} words, {features} features"
    told = [sizes.format(**found)]
    names = {
        "spectrum": "log-probabilities",
        "spectrum_centred": "less each context's mean",
        "spectrum_truth": "true log-probabilities",
    }
    for key, name in names.items():
        if key in found:
            told.append(_line(name, found[key], "rank {rank}, entropy rank {entropy_rank:.2f}"))
    told.append(
        _line(
            "gradient that passes the head",
            found["gradient"],
            "{share:.4f} of its norm; of a random one {share_of_a_random_gradient:.4f}",
        )
    )
    told.append(
        _line("words never the argmax", found["argmax"], "{never} of a sample of {words} words")
    )
    told.append(
        _line(
            "calibration",
            found["calibration"],
            "error {expected_calibration_error:.4f} ({of_it_by_chance:.4f} of it by chance), "
            "accuracy {accuracy:.4f}, {predictions:,} predictions",
        )
    )
    return told


def _line(name: str, found: Mapping[str, Any], form: str) -> str:
    return f"  {name:30} " + (found["unknown"] if "unknown" in found else form.format(**found))
