"""The versions of packages and the commit of this code, which results record."""

import importlib.metadata
import subprocess
import sys

from etils import epath


def versions() -> dict[str, str]:
    """Python and the packages that determine a run's numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": sys.version.split()[0]} | {n: importlib.metadata.version(n) for n in names}


def commit() -> str | None:
    """The commit of this code, with "+" where files other than committed results differ from it;
    None outside a checkout.
    """

    def git(*arguments: str) -> str:
        folder = epath.Path(__file__).parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)experiments/results")
        dirty = "+" if changed else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
