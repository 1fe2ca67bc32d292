"""Opens a workdir for a run. A workdir belongs to one config and one text: it is claimed before the
run begins, and another config or text is an error.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from itertools import filterfalse
from typing import Any

from etils import epath

from lm.checkpoints import run_files
from lm.checkpoints.identity import FREE
from lm.checkpoints.resume import LENGTH, MEASURED_TEXT, changed, check_changes
from lm.checkpoints.staging import needs_staging
from lm.config import Config, to_dict
from lm.data import Dataset
from lm.data.files import remove_partial, write_json
from lm.devices.hosts import from_main, is_main, process_count
from lm.errors import UserError
from lm.experiment.attempts import ATTEMPTS, attempt
from lm.experiment.claim import claim
from lm.experiment.failures import FAILURE


def open_workdir(
    config: Config, workdir: epath.Path, free: tuple[str, ...] = FREE + LENGTH
) -> dict[str, Any] | None:
    """What `_open_workdir` finds in the first process."""
    return from_main(lambda: _open_workdir(config, workdir, free))


def _open_workdir(
    config: Config, workdir: epath.Path, free: tuple[str, ...]
) -> dict[str, Any] | None:
    """The result of a finished run of this config in this workdir; None where there is work to do.

    What is `free` may differ from the config with which the run began; where its length does, there
    is work to do. A finished run has measured what it has: with another config.evaluation than its
    own, but for how often it was evaluated on the way, it is not the run that is asked for.

    Raises:
      UserError: where the workdir holds something else.
    """
    recorded = workdir / "config.json"
    if not recorded.exists():
        if workdir.exists() and not _is_free(workdir):
            raise UserError(f"{workdir} is not empty and is no run's folder; use another --workdir")
        return None
    before = run_files.recorded_config(recorded)
    run_files.check_same_config(config, before, workdir, ignored=free)
    check_changes(config, before, workdir)
    result, changes = run_files.read_result(workdir), changed(config, before)
    if result is None or any(key in changes for key in LENGTH):
        return None
    for key, (old, new) in changes.items():
        if key.startswith("evaluation.") and (
            key != "evaluation.every" or config.evaluation.patience
        ):
            remeasured = key in MEASURED_TEXT
            raise UserError(
                f"{workdir} is finished, with config.{key} = {old!r} instead of {new!r}; use that "
                f"value, or {'measure it by eval' if remeasured else 'another --workdir'}"
            )
    return result


def _is_free(workdir: epath.Path) -> bool:
    """Whether a run may begin in a folder."""
    return workdir.is_dir() and all(map(_is_remark, workdir.iterdir()))


def _is_remark(child: epath.Path) -> bool:
    """Whether a file tells nothing of a run but how it was launched, who has tried it, or the
    traceback with which it failed in a sweep.
    """
    return child.name in (FAILURE, "launch", ATTEMPTS) or child.name.startswith(".")


@contextlib.contextmanager
def held(workdir: epath.Path, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Holds a workdir for one command at a time; of several processes, the first does for all.

    Gives a function that raises where the workdir was taken over meanwhile; see
    `lm.experiment.claim`.
    """
    if process_count() > 1 and needs_staging(workdir):
        raise UserError(
            f"{workdir}: {process_count()} processes write the parts of a checkpoint, which they "
            "can into a folder that all share or a bucket gs://; use such a --workdir"
        )
    with contextlib.ExitStack() as stack:
        checks: list[Callable[[], None]] = []
        from_main(lambda: checks.append(stack.enter_context(claim(workdir, wait)).check))
        yield checks[0] if checks else lambda: None


@contextlib.contextmanager
def attempted(workdir: epath.Path) -> Iterator[Callable[[int], None]]:
    """Records a block as an attempt at the run in a workdir that this command holds.

    Gives a function that records from which step it goes on; see `lm.experiment.attempts`.
    """
    with attempt(workdir) if is_main() else contextlib.nullcontext(lambda step: None) as begins:
        yield begins


@contextlib.contextmanager
def claimed(config: Config, workdir: epath.Path, corpus: Dataset) -> Iterator[None]:
    """Writes what the run is made of before it begins; checks that its text is still the same.

    A user's mistake that is found inside lets go of the workdir again, where no run was in it.
    """
    free = from_main(lambda: _begin(config, workdir, corpus))
    try:
        yield
    except UserError:
        if free and is_main():
            for child in filterfalse(_is_remark, workdir.iterdir()):
                child.rmtree() if child.is_dir() else child.unlink()
        raise


def _begin(config: Config, workdir: epath.Path, corpus: Dataset) -> bool:
    """Writes or checks what a run is made of; whether no run was in the workdir."""
    recorded, result = workdir / "data.json", workdir / "result.json"
    if result.exists() and run_files.read_result(workdir) is None:
        print(f"{result} is not whole; it is derived again", file=sys.stderr, flush=True)
    free = not workdir.exists() or _is_free(workdir)
    if workdir.exists():
        remove_partial(workdir)
    if recorded.exists():
        run_files.check_same_text(workdir, corpus)
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", to_dict(config))
        write_json(recorded, corpus.manifest)
    return free
