"""Several processes that run one command, one for each host: how they meet, learn what the first of
them decides, agree, and end together.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO, TypeVar

import jax
import numpy as np
from jax._src import clusters, distributed  # JAX has no public form of what is used of them
from jax.experimental import multihost_utils

from lm.devices.lost_process import end_with_line
from lm.errors import Interrupted, UserError

T = TypeVar("T")

START = 300  # seconds within which all processes must have been started
SILENCE = 30  # seconds without a heartbeat after which a process is lost
_PATIENCE = 10.0  # seconds until a process says that it waits for the others
_LOOK = 1.0  # seconds between two looks for one that has failed
ALIKE = 10  # seconds within which a mistake that all make is found by all

_state = distributed.global_state
_KEY = "softmax-laboratory"
_notices: dict[str, str] = {}
_FOREVER = 10**9  # milliseconds, 11 days; a lost process ends the wait
_turns = itertools.count()  # of the exchanges, which all processes make in the same order
_done, _ending, _alone = threading.Event(), threading.Event(), threading.Event()
_OF_ALL = (UserError, Interrupted, KeyboardInterrupt)  # what no lost process raises


class Cluster(NamedTuple):
    """The processes of a command.

    Attributes:
      coordinator: HOST:PORT of the first process; None: JAX knows it.
      num_processes: how many they are.
      process_id: of this one, from 0.
    """

    coordinator: str | None
    num_processes: int
    process_id: int


def find_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """The cluster that flags describe; without flags the one that JAX finds itself in (Cloud TPU,
    GKE, Slurm, Open MPI); None: there is one process.

    Raises:
      UserError: a flag is missing or out of range.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return _detected_cluster()
    if num_processes == 1 and len(missing) == 2:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            f"--{missing[0]} is missing; each of N processes needs --coordinator=HOST:PORT of the "
            "first, --num_processes=N and its own --process_id from 0 to N - 1 (Cloud TPU, GKE and "
            "Slurm need none of them)"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.2:12345")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not below --num_processes={num_processes}; number the "
            "processes from 0"
        )
    return Cluster(coordinator, num_processes, process_id) if num_processes > 1 else None


def _detected_cluster() -> Cluster | None:
    kinds = [kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method]
    found = next((kind for kind in kinds if kind.is_env_present()), None)
    if found is None or (count := found.get_process_count()) == 1:
        return None
    return Cluster(None, count, found.get_process_id())


@contextlib.contextmanager
def together(cluster: Cluster, report: Callable[[BaseException], int]) -> Iterator[None]:
    """Runs a block on all processes of a cluster, of which the first alone prints.

    A process that is lost, or fails where the others do not, ends them all, with one line on stderr
    and status 1. What fails in all is raised. Where this process fails alone, it ends with the
    status that `report` returns, once that has printed the error.
    """
    _start(cluster)
    watch = threading.Thread(target=_listen, args=(sys.stderr,), daemon=True)
    watch.start()
    try:
        with contextlib.nullcontext() if is_main() else _quiet():
            yield
            gather("done")
            _done.set()
            # The first, by whose service they meet, leaves once all know that they are done.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                gather("left")
    except BaseException as error:
        if not all_fail(error):
            _end_alone(error, report)
        raise
    finally:
        sys.stdout.flush()
        _ending.set()
        watch.join()  # before the client that it uses is shut down


def _start(cluster: Cluster) -> None:
    """Meets the other processes; before JAX has touched a device."""
    if cluster.process_id == 0 and cluster.coordinator:
        _check_free_port(cluster.coordinator)
    count, met = cluster.num_processes, False
    where = f"{count} processes to meet at {cluster.coordinator or 'the host of the first'}"

    def lost(processes: Sequence[int]) -> str | None:
        if _done.is_set():
            return None  # it has ended as this one is about to
        if met:
            names = " and ".join(f"process {number}" for number in processes) or "process 0"
            return (
                f"run.py: lost {names} of {count}, which ended or cannot be reached; start all "
                "again, to go on from the last checkpoint"
            )
        return (
            f"run.py: waited {START} s for {where}; start the same command on all of them, with "
            "process 0 on the host of the coordinator, whose port the others must reach"
        )

    end_with_line(lost, status=1)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would catch SIGTERM, which `lm.training.preemption` does.
    jax.config.update("jax_enable_preemption_service", False)
    line = f"run.py: process {cluster.process_id} waits for {where}"
    waits = threading.Timer(_PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
    waits.daemon = True
    waits.start()
    # JAX gives each process of Slurm and Open MPI one GPU, also where it is alone on its host.
    alone = os.environ.get("SLURM_STEP_NUM_NODES") == str(count)
    alone |= os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    jax.distributed.initialize(
        *cluster,
        local_device_ids=[] if alone else None,
        cluster_detection_method="deactivate" if cluster.coordinator else None,
        initialization_timeout=START,
        heartbeat_timeout_seconds=SILENCE,
    )
    waits.cancel()
    met = True


def _check_free_port(coordinator: str) -> None:
    """Raises UserError where something listens there already; JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        raise UserError(f"--coordinator={coordinator}: port {port} is in use here; give another")


def all_fail(error: BaseException) -> bool:
    """Whether all processes have failed, as this one has; waits for them.

    Where the error may come from a lost process, it waits until that is found, which ends this one.
    """
    if process_count() == 1:
        return True
    if not _alone.is_set():
        seconds = ALIKE if isinstance(error, _OF_ALL) else SILENCE + 15
        try:
            _client().wait_at_barrier(f"{_KEY}/{next(_turns)}", seconds * 1000)
        except jax.errors.JaxRuntimeError:
            time.sleep(1)  # a process that is lost may just have been found
            _alone.set()
    return not _alone.is_set()


def _end_alone(error: BaseException, report: Callable[[BaseException], int]) -> None:
    """Tells the others, and ends this process without waiting for them."""
    _ending.set()
    try:
        status = report(error)
    except BaseException:
        traceback.print_exc()
        status = 1
    line = " ".join(f"{error or type(error).__name__}".split())
    answer = f"process {process_index()} of {process_count()} has ended: {line[:500]}"
    tell("notices/failed", answer)
    time.sleep(2 * _LOOK)  # with the first process goes what tells the others
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what is printed: to stdout from here on, to stderr in the block."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        os.dup2(sink.fileno(), 1)
        yield


def _listen(stderr: TextIO) -> None:
    """Reads the notices; ends this process when one that fails alone has told so."""
    while not _ending.wait(_LOOK):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _notices.update(told("notices"))
        if line := notice("failed"):
            print(f"run.py: {line}", file=stderr, flush=True)
            os._exit(1)


def is_main() -> bool:
    """Whether this is the first process, which alone writes; touches no device."""
    return process_index() == 0


def process_count() -> int:
    """How many processes run this command; touches no device."""
    return _state.num_processes


def process_index() -> int:
    """Which of them this is, from 0; touches no device."""
    return _state.process_id


def from_main(compute: Callable[[], T]) -> T:
    """What the first process computes, on all of them; the others get it as JSON keeps it.

    A UserError is raised on all. All processes make such calls in the same order.
    """
    if process_count() == 1:
        return compute()
    key = f"{_KEY}/{next(_turns)}"
    if is_main():
        try:
            value = compute()
        except UserError as error:
            answer = {"error": type(error).__name__, "line": str(error)}
            _client().key_value_set(key, json.dumps(answer))
            raise
        _client().key_value_set(key, json.dumps({"value": value}))
        return value
    answer = json.loads(_client().blocking_key_value_get(key, _FOREVER))
    if "error" in answer:
        raise _user_error(answer["error"])(answer["line"])
    return answer["value"]


def _user_error(name: str, kind: type[UserError] = UserError) -> type[UserError]:
    """The kind of UserError of this name."""
    below = [_user_error(name, each) for each in kind.__subclasses__()]
    return next((each for each in below if each.__name__ == name), kind)


def main_first(compute: Callable[[], T]) -> T:
    """What each process computes, the others after the first, so that they find what it has written
    where they share the folder.
    """
    made: list[T] = []
    from_main(lambda: made.append(compute()))
    return made[0] if made else compute()


def check_alike(described: Mapping[str, str]) -> None:
    """Raises UserError on all processes where one has another value than the first."""
    if process_count() == 1:
        return
    first, *others = map(json.loads, gather(json.dumps(described)))
    for number, other in enumerate(others, start=1):
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                raise UserError(
                    f"process {number} has {key} = {other.get(key)} and process 0 has "
                    f"{first.get(key)}; start the same command on all"
                )


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """The values of an array in this process, which need not hold all of them; all call this."""
    if process_count() == 1 or isinstance(array, np.ndarray) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def any_process(value: bool) -> bool:
    """Whether it is true in any process; all call this, and wait for each other."""
    return value if process_count() == 1 else "True" in gather(str(value))


def gather(value: str) -> list[str]:
    """What each process gives, in their order; all call this, and wait for each other.

    It passes by no device: on CPUs, programs that communicate beside a step may lock each other.
    """
    turn = f"gathered-{next(_turns)}"
    tell(f"{turn}/{process_index()}", value)
    _client().wait_at_barrier(turn, _FOREVER)
    found = told(turn)
    return [found[str(number)] for number in range(process_count())]


def tell(name: str, value: str) -> None:
    """Lets all processes know a value under a name, A/B."""
    _client().key_value_set(f"{_KEY}/{name}", value, allow_overwrite=True)


def told(folder: str) -> dict[str, str]:
    """What any process has told under names in a folder, by the rest of the name."""
    found = _client().key_value_dir_get(f"{_KEY}/{folder}/")
    return {key.rpartition("/")[2]: value for key, value in found}


def notice(name: str) -> str | None:
    """What was told as notices/NAME a second ago or earlier; asks no other process."""
    return _notices.get(name)


def _client() -> Any:
    """Of JAX's service that all processes have in common."""
    return _state.client
