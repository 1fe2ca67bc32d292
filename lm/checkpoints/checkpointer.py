"""Saves a run's state and restores it, with Orbax: asynchronous saves, restores onto any mesh, and
a checksum in every checkpoint, by which damage is found when it is read.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lm.checkpoints.checksum import checksum
from lm.checkpoints.layer_layout import layouts_differ, named_leaves, to_layout
from lm.checkpoints.preservation import Preservation
from lm.checkpoints.staging import Staging, is_complete, needs_staging
from lm.data.bucket import absolute, move
from lm.devices.hosts import any_process, from_main, process_count
from lm.devices.sharding import tree_shardings, whole
from lm.errors import UserError, explain
from lm.training.train_state import TrainState

# In a checkpoint's own metadata: the checksum of what it holds.
CHECKSUM = "checksum"


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be read, or holds something else than what was saved."""


class Checkpoints:
    """The checkpoints of one workdir, in its folder `checkpoints`, named by step.

    The checksum of a state is saved within its checkpoint, so that neither exists without the
    other: Orbax makes a checkpoint visible as a whole, by renaming its folder.

    Only the run that writes them says which to `keep`; it alone removes what a killed save left,
    and moves damaged checkpoints into the workdir's folder `damaged`.
    """

    def __init__(self, workdir: epath.PathLike, keep: Preservation | None = None):
        # Orbax insists on absolute paths.
        self.folder = absolute(workdir) / "checkpoints"
        self.keep, self._saving = keep, None
        self._staging = None
        if needs_staging(self.folder):
            if process_count() > 1:
                raise UserError(
                    f"several processes cannot save into {self.folder}; use a --workdir on gs:// "
                    "or in a folder that all see"
                )
            self._staging = Staging(self.folder, writes=keep is not None)
            self._uploads = concurrent.futures.ThreadPoolExecutor(1, "upload")

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first; those that the first process sees."""
        return from_main(self._listed)

    def _listed(self) -> list[int]:
        if not self.folder.exists():
            return []
        return sorted(int(child.name) for child in self.folder.iterdir() if is_complete(child))

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Orbax's, which lists what there is as it begins and stumbles over damaged metadata."""
        logging.getLogger("absl").addFilter(_not_of_orbax)
        policies = ocp.training.preservation_policies
        policy: Any = self.keep or policies.PreserveAll()
        folder = self.folder
        if self._staging is None:
            from_main(self._set_aside_unreadable)
        else:
            self._staging.remove_partial()
            folder, policy = self._staging.written, policies.LatestN(1)
        return ocp.training.Checkpointer(
            folder, preservation_policy=policy, cleanup_tmp_directories=self.keep is not None
        )

    def _set_aside_unreadable(self) -> None:
        for step in self._listed():
            try:
                self._metadata(step)
            except DamagedCheckpoint as error:
                self._set_aside({step: error})

    def save(self, state: TrainState) -> None:
        """Begins to write a state in the background; waits for the save before it, if any."""
        self.wait()
        step = int(state.step)
        if step not in self.steps:
            self._saving = self._checkpointer.save_async(
                step,
                state.saved,
                force=True,
                custom_metadata={CHECKSUM: checksum(named_leaves(state.saved))},
            )
            if self._staging is not None:
                self._saving = self._uploads.submit(self._upload, self._saving, step)

    def _upload(self, saving: Any, step: int) -> None:
        """Copies a checkpoint into the bucket once it is saved, and removes those not kept."""
        assert self._staging is not None and self.keep is not None
        saving.result()
        self._staging.upload(step)
        there = [types.SimpleNamespace(step=each) for each in self._listed()]
        kept = self.keep.should_preserve(there, context=None)
        for each, keep in zip(there, kept, strict=True):
            if not keep:
                self._staging.delete(each.step)

    def protect(self, step: int) -> None:
        """Keeps the checkpoint of a step, however many follow it; until another is protected."""
        assert self.keep is not None
        self.keep.protected = step

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints that came after a step, which is then the newest."""
        self.wait()
        for later in self.steps:
            if later > step:
                (self._staging or self._checkpointer).delete(later)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def load(self, abstract: Any, step: int | None = None) -> Any:
        """The state of a step, with the shapes and shardings of `abstract`.

        Without a step it is the newest that is whole; those after it are named on stderr. Layers
        have the layout of `abstract`, however they were saved.

        Raises:
          UserError: where there is none, or none that is whole.
          DamagedCheckpoint: where that of `step` is not.
        """
        names = named_leaves(abstract).keys()

        def wanted(step: int) -> Any:
            saved = self._metadata(step).metadata
            if not layouts_differ(named_leaves(saved).keys(), names):
                return abstract
            mesh = jax.tree.leaves(abstract)[0].sharding.mesh
            saved = self._abstract(whole(mesh), step)
            shardings = tree_shardings(mesh, saved["params"], saved)
            return jax.tree.map(lambda x, s: x.update(sharding=s), saved, shardings)

        state = self._load(wanted, step)
        found = named_leaves(state)
        return to_layout(found, abstract) if layouts_differ(found.keys(), names) else state

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
        if self._staging is not None:
            self._uploads.shutdown()
            self._staging.close()

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
                if from_main((self.folder / str(steps[-1])).exists):
                    damaged[steps[-1]] = error
            else:
                instead = f"; step {steps[-1]} is used instead"
                from_main(functools.partial(self._set_aside, damaged, instead))
                return state
        if damaged:
            raise UserError(
                f"{next(iter(damaged.values()))}, and no other is whole: restore that folder, or "
                f"move {self.folder} away to begin again"
            )
        raise UserError(f"{self.folder} holds no checkpoint; train the run first")

    def _verified(self, abstract: Callable[[int], Any], step: int) -> Any:
        """The state of a step, which is what was saved; DamagedCheckpoint in all processes where
        one of them cannot read it.
        """
        path, recorded, state, failure = self.folder / str(step), None, None, None
        try:
            recorded, wanted = self._metadata(step).custom_metadata, abstract(step)
            with _reading(path), _each_process_alone():
                state = ocp.load(self._local(step), wanted, checkpointable_name="state")
        except DamagedCheckpoint as error:
            failure = error
        if any_process(failure is not None):
            raise failure or DamagedCheckpoint(
                f"checkpoint {path} cannot be read by another process: it is damaged"
            )
        if (expected := (recorded or {}).get(CHECKSUM)) is None:
            raise DamagedCheckpoint(
                f"checkpoint {path} is damaged, or of an older version of this code: it has no "
                "checksum, by which to tell"
            )
        if expected != checksum(named_leaves(state)):
            raise DamagedCheckpoint(
                f"checkpoint {path} is damaged: it does not hold what was saved"
            )
        return state

    def _metadata(self, step: int) -> Any:
        with _reading(self.folder / str(step)):
            return ocp.metadata(self._local(step), checkpointable_name="state")

    def _local(self, step: int) -> epath.Path:
        """Where Orbax can read the checkpoint of a step."""
        return self._staging.download(step) if self._staging else self.folder / str(step)

    def _abstract(self, sharding: Any, step: int) -> Any:
        """Shapes and types of a checkpoint's arrays, all with one sharding."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._metadata(step).metadata,
        )

    def _set_aside(self, damaged: dict[int, DamagedCheckpoint], instead: str = "") -> None:
        """Reports damaged checkpoints; the run that writes here moves them away. Of several
        processes, the first does.
        """
        for step, error in damaged.items():
            kept = ""
            if self.keep is not None:
                target = _free_name(self.folder.parent / "damaged" / str(step))
                move(self.folder / str(step), target)
                kept = f"; moved to {target}"
            print(f"{error}{kept}{instead}", file=sys.stderr, flush=True)


def _each_process_alone() -> contextlib.AbstractContextManager[Any]:
    """Makes no process wait, as it loads, for one that fails to."""
    if process_count() == 1:
        return contextlib.nullcontext()
    context, own = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    return context


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Lets pass what others than Orbax log; what fails in its threads is raised by `wait`."""
    return record.levelno >= logging.CRITICAL or "orbax" not in record.pathname.split(os.sep)


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Turns failures to read a checkpoint into one line, but for those of the machine (memory)."""
    try:
        with _silent_stderr():
            yield
    except Exception as error:
        if explain(error):
            raise
        raise DamagedCheckpoint(
            f"checkpoint {path} cannot be read ({_cause(error)}): it is damaged or of another model"
        ) from None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps stderr clean while a load fails: TensorStore's threads print tracebacks to it."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    except Exception:
        time.sleep(0.5)  # Stragglers print when the event loop is gone.
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cause(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).split())
    return line if len(line) <= 160 else line[:157] + "..."


def _free_name(path: epath.Path) -> epath.Path:
    """The path, or where there is something, the first of path-2, path-3, ... that is free."""
    others = (path.parent / f"{path.name}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([path], others) if not free.exists())
