"""What made a number? The versions of what decides it, and the commit of this code."""

import importlib.metadata
import subprocess
import sys

from etils import epath


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {"python": sys.version.split()[0]} | {n: importlib.metadata.version(n) for n in names}


def commit() -> str | None:
    """The commit of this code, with "+" where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = epath.Path(__file__).parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def version_lines() -> list[str]:
    """The commit of this project, and the versions that decide a run's numbers, a line each."""
    own = f"softmax-laboratory {commit() or 'outside a checkout'}"
    return [own, *(f"{name} {version}" for name, version in versions().items())]
