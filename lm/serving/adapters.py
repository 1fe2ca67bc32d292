"""Adapters by name: those of further runs on the same base, loaded and exchanged while the server
answers, none of whose requests sees parts of two.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from lm.checkpoints.restored import Restored
from lm.serving.engine import Engine
from lm.serving.generation import Failure
from lm.serving.weights import adapter_of, with_adapter


class Adapters:
    """The adapters that a server knows, and their places on the device.

    Attributes:
      names: place by name; the run that the server began with is at place 0.
    """

    def __init__(
        self,
        own: str,
        engine: Engine,
        folder: epath.Path | None,
        open_run: Callable[[epath.Path], Restored],
    ):
        """Knows the server's own run.

        Args:
          own: its name.
          engine: whose weights hold the adapters.
          folder: its subfolders are the workdirs that may be loaded; None: none may.
          open_run: restores one of them.
        """
        self.names: Mapping[str, int] = {own: 0}
        self._own, self._engine, self._folder, self._open = own, engine, folder, open_run
        self._loading = threading.Lock()

    def place(self, name: str) -> int:
        """The place of an adapter; Failure where there is none of this name.

        Asked for by who holds the engine's lock until the request is queued.
        """
        if name not in self.names:
            raise Failure(
                404,
                "model_not_found",
                f"the model {name[:100]!r} is not served; use {', '.join(self.names)}",
            )
        return self.names[name]

    def load(self, name: str) -> None:
        """Reads the adapter of a run, and from then on serves it under its name; requests that are
        being answered by an adapter of this name before it go on with that.

        Raises:
          Failure: there is no such run, or no place for it.
          UserError: it is no adapter of this base.
        """
        if self._folder is None:
            raise Failure(
                400,
                "no_adapters",
                "no adapters can be loaded; start the server with --adapters=DIR",
            )
        if name == self._own:
            raise Failure(400, "name_taken", f"{name} is what the server began with")
        known = sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        if name not in known:
            raise Failure(404, "adapter_not_found", f"there is no adapter {name[:100]!r}")
        with self._loading:
            own = adapter_of(self._open(self._folder / name), self._engine.weights, name)
            self._in_engine(lambda: self._put(name, own))

    def unload(self, name: str) -> None:
        """Serves an adapter no more; requests that are being answered by it go on.

        Raises:
          Failure: it is not served, or is the server's own.
        """
        with self._engine.lock:
            self.place(name)
            if name == self._own:
                raise Failure(400, "name_taken", f"{name} is what the server began with")
            self.names = {key: place for key, place in self.names.items() if key != name}

    def _put(self, name: str, own: Mapping[str, Any]) -> None:
        """Writes to a place that nobody uses; between two steps of the engine."""
        engine = self._engine
        with engine.lock:  # no request finds its place meanwhile
            taken = self.names.values()
            places = range(engine.weights.places)
            free = [place for place in places if place not in taken and not engine.uses(place)]
            if not free:
                raise Failure(
                    409,
                    "no_place",
                    f"all {len(places)} places of adapters are in use; unload one, wait until its "
                    "requests are answered, or start the server with a larger --max_adapters",
                )
            engine.weights = with_adapter(engine.weights, own, np.int32(free[0]))
            self.names = {**self.names, name: free[0]}

    def _in_engine(self, function: Callable[[], None]) -> None:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def call() -> None:
            try:
                done.set_result(function())
            except Exception as error:
                done.set_exception(error)

        self._engine.call(call)
        done.result()
