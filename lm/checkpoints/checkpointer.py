"""Saves a run's state and restores it, with Orbax: asynchronous saves, restores onto any mesh, and
a fingerprint in every checkpoint by which damage is found when it is read.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lm.checkpoints.fingerprint import fingerprint
from lm.checkpoints.layer_layout import lies_otherwise, relaid
from lm.checkpoints.quiet import cause, quiet
from lm.devices.sharding import path_name, tree_shardings, whole
from lm.errors import UserError, explain
from lm.training.train_state import TrainState

# In a checkpoint's own metadata: the fingerprint of what it holds.
FINGERPRINT = "fingerprint"


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be read, or holds something else than what was saved."""


class Checkpoints:
    """The checkpoints of one workdir, in its folder `checkpoints`, named by step.

    The fingerprint of a state is saved within its checkpoint, so that neither is ever there without
    the other: Orbax makes a checkpoint visible as a whole, by renaming its folder.

    Only the run that writes them gives `keep`, how many stay; it alone clears away what a killed
    save left, and moves damaged checkpoints into the workdir's folder `damaged`.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = None):
        # Orbax insists on absolute paths.
        self.folder = epath.Path(workdir).resolve() / "checkpoints"
        self._kept = _Kept(keep)
        self._owner = keep is not None
        self._saving = None

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        if not self.folder.exists():
            return []
        return sorted(
            int(child.name)
            for child in self.folder.iterdir()
            if child.name.isdecimal() and ocp.is_orbax_checkpoint(child)
        )

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Orbax's, which lists what there is as it begins and stumbles over damaged metadata."""
        for step in self.steps:
            try:
                self._metadata(step)
            except DamagedCheckpoint as error:
                self._pass_over({step: error})
        logging.getLogger("absl").addFilter(_not_of_orbax)
        policy: Any = self._kept
        return ocp.training.Checkpointer(
            self.folder, preservation_policy=policy, cleanup_tmp_directories=self._owner
        )

    def save(self, state: TrainState) -> None:
        """Begins to write a state in the background; waits for the save before it, if any."""
        self.wait()
        step = int(state.step)
        if step not in self.steps:
            self._saving = self._checkpointer.save_async(
                step,
                state.saved,
                force=True,
                custom_metadata={FINGERPRINT: _fingerprint(state.saved)},
            )

    def protect(self, step: int) -> None:
        """Keeps the checkpoint of a step, however many follow it; until another is protected."""
        self._kept.protected = step

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints that came after a step, which is then the newest."""
        self.wait()
        for later in self.steps:
            if later > step:
                self._checkpointer.delete(later)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def load(self, abstract: Any, step: int | None = None) -> Any:
        """The state of a step, with the shapes and shardings of `abstract`.

        Without a step it is the newest that is whole; those after it are named on stderr. Layers
        lie as in `abstract`, however they were saved.

        Raises:
          UserError: where there is none, or none that is whole.
          DamagedCheckpoint: where that of `step` is not.
        """
        names = set(_named_leaves(abstract))

        def wanted(step: int) -> Any:
            saved = self._metadata(step).metadata
            if not lies_otherwise(set(_named_leaves(saved)), names):
                return abstract
            mesh = jax.tree.leaves(abstract)[0].sharding.mesh
            saved = self._abstract(whole(mesh), step)
            shardings = tree_shardings(mesh, saved["params"], saved)
            return jax.tree.map(lambda x, s: x.update(sharding=s), saved, shardings)

        state = self._load(wanted, step)
        found = _named_leaves(state)
        return relaid(found, abstract) if lies_otherwise(set(found), names) else state

    def load_raw(self, sharding: Any) -> Any:
        """The newest state that is whole as nested dictionaries, every array with one sharding.

        Raises:
          UserError: as `load`.
        """
        return self._load(functools.partial(self._abstract, sharding), None)

    def close(self) -> None:
        """Waits, and lets go of Orbax's threads."""
        self.wait()
        if "_checkpointer" in vars(self):
            self._checkpointer.close()

    def _load(self, abstract: Callable[[int], Any], step: int | None) -> Any:
        if step is not None:
            try:
                return self._verified(abstract, step)
            except DamagedCheckpoint as error:
                others = ", ".join(str(other) for other in self.steps if other != step) or "none"
                raise DamagedCheckpoint(f"{error}; other steps there: {others}") from None
        damaged: dict[int, DamagedCheckpoint] = {}
        while steps := [step for step in self.steps if step not in damaged]:
            try:
                state = self._verified(abstract, steps[-1])
            except DamagedCheckpoint as error:
                # It may be gone: the run that writes here keeps the latest alone.
                if (self.folder / str(steps[-1])).exists():
                    damaged[steps[-1]] = error
            else:
                self._pass_over(damaged, f"; step {steps[-1]} is used instead")
                return state
        if damaged:
            raise UserError(
                f"{next(iter(damaged.values()))}, and no other is whole: restore that folder, or "
                f"move {self.folder} away to begin again"
            )
        raise UserError(f"{self.folder} holds no checkpoint; train the run first")

    def _verified(self, abstract: Callable[[int], Any], step: int) -> Any:
        """The state of a step, which is what was saved."""
        path, recorded = self.folder / str(step), self._metadata(step).custom_metadata
        with _named(path):
            state = ocp.load(path, abstract(step), checkpointable_name="state")
        if (expected := (recorded or {}).get(FINGERPRINT)) is None:
            raise DamagedCheckpoint(
                f"checkpoint {path} is damaged, or of an older version of this code: it has no "
                "fingerprint, by which to tell"
            )
        if expected != _fingerprint(state):
            raise DamagedCheckpoint(
                f"checkpoint {path} is damaged: it does not hold what was saved"
            )
        return state

    def _metadata(self, step: int) -> Any:
        path = self.folder / str(step)
        with _named(path):
            return ocp.metadata(path, checkpointable_name="state")

    def _abstract(self, sharding: Any, step: int) -> Any:
        """Shapes and types of a checkpoint's arrays, all with one sharding."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._metadata(step).metadata,
        )

    def _pass_over(self, damaged: dict[int, DamagedCheckpoint], instead: str = "") -> None:
        """Says which are damaged; the run that writes here moves them away and loses nothing."""
        for step, error in damaged.items():
            kept = ""
            if self._owner and jax.process_index() == 0:
                target = _free_name(self.folder.parent / "damaged" / str(step))
                target.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(target)
                kept = f"; moved to {target}"
            print(f"{error}{kept}{instead}", file=sys.stderr, flush=True)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Lets pass what others than Orbax log; what fails in its threads is raised by `wait`."""
    return record.levelno >= logging.CRITICAL or "orbax" not in record.pathname.split(os.sep)


@dataclasses.dataclass
class _Kept:
    """Orbax's policy: the latest `number` checkpoints (None: all), and a protected one."""

    number: int | None
    protected: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint, oldest first."""
        oldest = 0 if self.number is None else len(checkpoints) - self.number
        return [
            place >= oldest or checkpoint.step == self.protected
            for place, checkpoint in enumerate(checkpoints)
        ]


def _fingerprint(state: Any) -> str:
    """Of a state, or of the nested dictionaries as which Orbax reads one."""
    return fingerprint(_named_leaves(state))


def _named_leaves(state: Any) -> dict[str, Any]:
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
    """Turns any failure to read a checkpoint into one line; but for those of the machine, such as
    too little memory, with which it may be whole.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        if explain(error):
            raise
        raise DamagedCheckpoint(
            f"checkpoint {path} cannot be read ({cause(error)}): it is damaged or of another model"
        ) from None


def _free_name(path: epath.Path) -> epath.Path:
    """The path, or where there is something, the first of path-2, path-3, ... that is free."""
    number = 2
    free = path
    while free.exists():
        free, number = path.parent / f"{path.name}-{number}", number + 1
    return free
