"""Is what a run began with still the same? Parameters that stand elsewhere, of its base or of its
teacher, are read again whenever it goes on; their hash is in its workdir.
"""

from collections.abc import Mapping

import jax
from etils import epath

from lm.checkpoints.fingerprint import fingerprint
from lm.checkpoints.run_files import read_run_json
from lm.data.files import write_json
from lm.errors import UserError


def record_origin(file: epath.Path, origin: str, arrays: Mapping[str, jax.Array]) -> None:
    """Writes where named arrays came from, and their hash, as a run begins."""
    found = fingerprint(arrays)
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"origin": origin, "hash": found})


def check_origin(file: epath.Path, origin: str, arrays: Mapping[str, jax.Array]) -> None:
    """Raises UserError where these are not the arrays that were recorded, or nothing was."""
    if not file.exists():
        raise UserError(
            f"{file.parent} has no {file.name}, by which to tell whether {origin} is still the "
            "same; restore that file, or train again in another --workdir"
        )
    recorded = read_run_json(file, "origin", "hash")
    if (found := fingerprint(arrays)) != recorded["hash"]:
        raise UserError(
            f"{file.parent} was trained on {recorded['origin']} (hash {recorded['hash']}), which "
            f"is now another, {origin} (hash {found}); restore that {file.stem}"
        )
