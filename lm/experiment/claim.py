"""Claims a folder for one process at a time, on a local disk, on NFS or in a bucket.

A claim is a file `.claim-N` in the folder, which says who holds it. It is created whole, only where
there is none of that name, and refreshed by a thread of its holder. It is over when its process has
ended, which is known at once on the same machine, or when it was not refreshed for `STALE` seconds.
Whoever takes over creates the next number, so that of many that try one succeeds, and looks again
afterwards: who then sees another that is not over withdraws its own.
"""

import contextlib
import contextvars
import dataclasses
import json
import math
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from etils import epath

from lm.data.bucket import absolute, in_bucket, make_folder, modified
from lm.data.files import create_text
from lm.errors import UserError

BEAT = 15.0  # seconds between two refreshments of a claim
STALE = 120.0  # seconds without one; more than NFS may show an old time for (60)
POLL = 2.0  # seconds between two looks of one who waits

_NAME = re.compile(r"\.claim-(\d+)")


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a claim, as its file tells.

    Attributes:
      host: name of its machine, for people.
      machine: what no other machine or container has, and a reboot changes.
      pid: number of the process.
      born: when the process started, in the system's own unit; None where it does not say.
      since: when it made the claim, for people.
      token: what no other claim has.
    """

    host: str
    machine: str
    pid: int
    born: str | None
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def is_near(self) -> bool:
        """Whether it is of this machine, so that the process can be looked for."""
        return self.machine == _machine()

    @property
    def runs(self) -> bool:
        """Whether the process, of this machine, is still there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.born == _born(self.pid)


class Sighting(NamedTuple):
    """What the claim of a folder shows: who made it (None: its file is not whole), whether it is in
    force, and the seconds since it was refreshed.
    """

    holder: Holder | None
    in_force: bool
    age: float


class Held(UserError):
    """Another process holds the folder; or has taken it over while this one did not run."""

    @property
    def finding(self) -> str:
        """Who holds which folder, without what to do."""
        return str(self).rpartition("; ")[0]


class Claim:
    """A claim that this process holds; see `claim`.

    Attributes:
      holder: this process.
      taken_from: who held the folder before and ended without letting go, such as by a kill.
    """

    def __init__(self, path: epath.Path, holder: Holder, taken_from: Holder | None):
        self.holder, self.taken_from = holder, taken_from
        self._path = path
        self._beaten, self._lost, self._ended = time.time(), False, threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises Held where another process has taken over, as after this one was suspended."""
        if time.time() - self._beaten > STALE / 2:
            try:
                self._beat()
            except OSError as error:  # the claim holds until it is stale
                if time.time() - self._beaten > STALE:
                    raise Held(
                        f"{self._path} could not be refreshed for {STALE:.0f} s ({error}), so that "
                        "another process may take over; nothing more is written here"
                    ) from None
        if self._lost:
            raise Held(
                f"{self._path.parent} was taken over by another process while this one showed no "
                f"sign of life for {STALE:.0f} s; nothing more is written here"
            )

    def release(self) -> None:
        """Lets go of the folder."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # what stays ends with this process
            if _read(self._path) == self.holder:
                self._path.unlink(missing_ok=True)

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # such as of a network; the next beat may succeed
                self._beat()

    def _beat(self) -> None:
        self._lost = _read(self._path) != self.holder
        if not self._lost:
            _touch(self._path)
            self._beaten = time.time()


# The claims of this thread, by folder.
_MINE: contextvars.ContextVar[Mapping[str, Claim]] = contextvars.ContextVar("mine", default={})  # noqa: B039 (is never changed)


@contextlib.contextmanager
def claim(folder: epath.PathLike, wait: bool = False) -> Iterator[Claim]:
    """Holds a folder, which is made where there is none, until the block ends.

    A block within that holds the same folder, in the same thread, shares the claim.

    Args:
      folder: local or in a bucket.
      wait: until whoever holds it lets go, instead of raising.

    Raises:
      Held: another process holds it.
      UserError: see `check_exclusive`.
    """
    folder = epath.Path(folder)
    name = os.fspath(absolute(folder))
    if name in _MINE.get():
        yield _MINE.get()[name]
        return
    made = not folder.exists()
    make_folder(folder)
    if wait:
        check_exclusive(folder)
    held = _wait_for(folder) if wait else _take(folder)
    before = _MINE.set({**_MINE.get(), name: held})
    try:
        yield held
    finally:
        _MINE.reset(before)
        held.release()
        if made:
            _remove_empty(folder)


def check_exclusive(folder: epath.PathLike) -> None:
    """Raises UserError where commands cannot share a folder, as it is in a bucket whose server
    makes an object though there is one of its name.
    """
    if not in_bucket(folder):
        return
    probe = epath.Path(folder) / f".claim-probe-{uuid.uuid4().hex}"
    made = [create_text(probe, "") for _ in range(2)]
    probe.unlink(missing_ok=True)
    if all(made):
        raise UserError(
            f"--share: the server of {folder} does not make objects on condition that there is "
            "none (If-None-Match); leave out --share and run one command at a time"
        )


def holder(folder: epath.PathLike) -> Held | None:
    """Says in an error that may be raised who holds a folder; None where nobody does."""
    return _holder_among(_claims(epath.Path(folder)))


def last_claim(folder: epath.PathLike) -> Sighting | None:
    """The claim in force in a folder, or the last that was not let go of; None without any."""
    claims = sorted(_claims(epath.Path(folder)).items())
    seen = [Sighting(_read(path), not _is_over(path), _age(path)) for _, path in claims]
    return next((each for each in seen if each.in_force), seen[-1] if seen else None)


def _wait_for(folder: epath.Path) -> Claim:
    told = False
    while True:
        try:
            return _take(folder)
        except Held as error:
            if not told:
                print(f"waits: {error.finding}", flush=True)
            told = True
            time.sleep(POLL)


def _take(folder: epath.Path) -> Claim:
    me = Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        born=_born(os.getpid()),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        token=uuid.uuid4().hex,
    )
    while True:
        claims = _claims(folder)
        if found := _holder_among(claims):
            raise found
        make_folder(folder)  # whoever let go of it may have removed it
        number = max(claims, default=0) + 1
        path = folder / f".claim-{number}"
        if create_text(path, json.dumps(dataclasses.asdict(me))):
            others = {n: other for n, other in _claims(folder).items() if n != number}
            if _holder_among(others) is None:
                before = [found for _, old in sorted(others.items()) if (found := _read(old))]
                for old in others.values():
                    old.unlink(missing_ok=True)
                return Claim(path, me, before[-1] if before else None)
            path.unlink(missing_ok=True)
        time.sleep(random.uniform(0.05, 0.5))


def _holder_among(claims: Mapping[int, epath.Path]) -> Held | None:
    for path in claims.values():
        if not _is_over(path):
            return Held(
                f"{path.parent} is held by {_read(path) or 'a process that is just beginning'}; "
                "wait until it ends, which train, sweep and table do with --share"
            )
    return None


def _remove_empty(folder: epath.Path) -> None:
    """Removes a folder that is empty, unless another process makes a claim in it meanwhile."""
    with contextlib.suppress(OSError):
        if not any(folder.iterdir()):
            folder.rmdir()


def _claims(folder: epath.Path) -> dict[int, epath.Path]:
    """The files of all claims, by number."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return {}
    named = ((_NAME.fullmatch(path.name), path) for path in paths)
    return {int(match[1]): path for match, path in named if match}


def _is_over(path: epath.Path) -> bool:
    """Whether nobody holds a claim any more."""
    found = _read(path)
    if found is not None and found.is_near:
        return not found.runs
    return _age(path) > STALE


def _age(path: epath.Path) -> float:
    """Seconds since a claim was refreshed; infinite where it is gone.

    Both times are the file server's: clocks of two machines may differ.
    """
    probe = path.parent / f".claim-probe-{uuid.uuid4().hex}"
    try:
        probe.write_text("")
        now = modified(probe)
        probe.unlink()
        return now - modified(path)
    except FileNotFoundError:  # also where whoever let go has removed the folder
        return math.inf


def _read(path: epath.Path) -> Holder | None:
    """None where there is no such claim, or not all of it yet."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        return None


def _touch(path: epath.Path) -> None:
    """Gives a file the present time, by the clock of its file server."""
    if in_bucket(path):
        path.write_text(path.read_text())
    else:
        os.utime(path)


def _machine() -> str:
    """Names the machine since it was started, and the container, whose process numbers hold."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and space.exists():
        return f"{boot.read_text().strip()} {os.readlink(space)}"
    return f"{socket.gethostname()} {uuid.getnode()}"


def _born(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None where nobody may know."""
    try:
        # The second field, the command, may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
