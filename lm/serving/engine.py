"""The thread that owns the device: it admits requests into slots, draws a token for all of them at
a time, and computes the rows of other requests in between.
"""

import collections
import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from lm.generation.sample import SamplingParams
from lm.serving.generation import Failure, Generation, Piece, Token, computing_failed
from lm.serving.row_queue import Arrays, RowQueue
from lm.serving.slot_sampling import Drawn, as_arrays
from lm.serving.slots import Slots
from lm.serving.weights import Weights

ROWS_OF_REQUEST = 16  # rows that count as one request that waits
Post = Callable[[Callable[[], None]], object]


@dataclasses.dataclass
class Counts:
    """What the engine has done since it began.

    Attributes:
      steps: times that a token was drawn for all slots.
      prompt_tokens, generated_tokens: read, and drawn.
      rows: computed whole.
      cancelled: requests whose client had left.
      timed_out: requests that took too long.
    """

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rows: int = 0
    cancelled: int = 0
    timed_out: int = 0


class _Drawing(NamedTuple):
    """Draws whose results have not been fetched: of which generations, by row of the draw."""

    drawn: Drawn
    rows: list[tuple[int, Generation]]


class Engine:
    """Serves requests with one model; see the module.

    A step is dispatched before the tokens of the one before are fetched, so that the device does
    not wait for the host; a text that has ended occupies its slot for one more step.

    Attributes:
      slots: None where the model generates nothing.
      rows: programs on whole rows.
      weights: exchanged only by the engine's own thread (`call`).
      counts: what was done.
    """

    def __init__(
        self,
        weights: Weights,
        slots: Slots | None,
        rows: RowQueue,
        *,
        max_waiting: int,
        post: Post = lambda call: call(),
    ):
        """Begins with nothing to do.

        Args:
          max_waiting: requests that may wait for a slot, or rows for their turn.
          post: runs a function where requests are received, such as on the event loop.
        """
        self.weights, self.slots, self.rows, self.counts = weights, slots, rows, Counts()
        self._max_waiting, self.post = max_waiting, post
        self._waiting: collections.deque[Generation] = collections.deque()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._active: dict[int, Generation] = {}
        self._drawing: list[_Drawing] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, once what it has was served."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are being served."""
        return self._thread.is_alive() and not self._closing

    @property
    def lock(self) -> threading.Condition:
        """Held where several things must be seen or queued at once; the engine waits meanwhile."""
        return self._changed

    @property
    def num_active(self) -> int:
        """Slots in use."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot, and rows."""
        return len(self._waiting) + len(self.rows)

    def uses(self, adapter: int) -> bool:
        """Whether a request that is not finished uses the adapter at a place."""
        both = [*self._waiting, *self._active.values()]
        generates = any(each.request.adapter == adapter for each in both)
        return generates or self.rows.waits_for(adapter)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queues generations of one request.

        Raises:
          Failure: the queue is full, or the engine is closing.
        """
        with self._changed:
            self._check_room(len(self._waiting), len(generations))
            self._waiting.extend(generations)
            self._changed.notify()

    def cancel(self, generations: Sequence[Generation]) -> None:
        """Ends generations that nobody waits for."""
        with self._changed:
            for each in generations:
                self.counts.cancelled += not (each.cancelled or each.done)
                each.cancelled = True
            self._changed.notify()

    def submit_rows(
        self, name: str, rows: Sequence[Arrays], adapter: int
    ) -> "list[concurrent.futures.Future[Arrays]]":
        """Queues rows for a program of `rows`; their results.

        Raises:
          Failure: as `submit`.
        """
        with self._changed:
            own = len(rows) // ROWS_OF_REQUEST
            self._check_room(len(self.rows) // ROWS_OF_REQUEST, own)
            found = [self.rows.put(name, row, adapter) for row in rows]
            self._changed.notify()
        return found

    def call(self, function: Callable[[], None]) -> None:
        """Runs a function in the engine's thread, between two steps.

        Raises:
          Failure: the engine is closing.
        """
        with self._changed:
            self._check_open()
            self._calls.put(function)
            self._changed.notify()

    def _check_open(self) -> None:
        if self._closing:
            raise Failure(503, "shutting_down", "the server is shutting down; ask another")

    def _check_room(self, waiting: int, new: int) -> None:
        self._check_open()
        most = self._max_waiting
        if new > most:
            raise Failure(
                400,
                "too_many",
                f"{new} requests in one are more than the {most} that may wait; ask for fewer at "
                "a time, or start the server with a larger --max_queue",
            )
        if waiting + new > most:
            raise Failure(
                429,
                "queue_full",
                f"{waiting + new} requests would wait, more than the {most} that may; try again "
                "later, or start the server with a larger --max_queue",
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._has_work() or self._closing):
                    self._changed.wait()
                if self._closing and not self._has_work():
                    return
            try:
                self._step()
            except Exception as error:
                logging.exception("The engine failed; its requests are given up")
                self._give_up(error)

    def _has_work(self) -> bool:
        return bool(
            self._waiting
            or self._active
            or self._drawing
            or len(self.rows)
            or not self._calls.empty()
        )

    def _step(self) -> None:
        """One turn: calls, a batch of rows, new requests, a token for all, and what came before."""
        while not self._calls.empty():
            self._calls.get()()
        with self._changed:
            due = bool(len(self.rows))
        if due:
            self.counts.rows += self._run_rows()
        self._drop_stale()
        before, self._drawing = self._drawing, []
        self._admit()
        if self._active and self.slots is not None:
            drawn = self.slots.decode(self.weights, self._active)
            self.counts.steps += 1
            # Slots that were just admitted draw their second token here.
            self._drawing.append(_Drawing(drawn, list(self._active.items())))
        self._deliver(before)

    def _run_rows(self) -> int:
        with self._changed:
            batch = self.rows.take()
        return self.rows.finish(self.weights, batch) if batch else 0

    def _admit(self) -> None:
        """Fills free slots with requests that wait."""
        if self.slots is None:
            return
        free = (slot for slot in range(self.slots.number) if slot not in self._active)
        for slot in free:
            with self._changed:
                generation = self._waiting.popleft() if self._waiting else None
            if generation is None:
                return
            request = generation.request
            generation.admitted = time.monotonic()
            self.counts.prompt_tokens += request.num_read
            self._active[slot] = generation
            drawn = self.slots.admit(
                self.weights,
                slot,
                request.prompt,
                request.draws,
                as_arrays(request.sampling),
                request.adapter,
                request.source,
            )
            self._drawing.append(_Drawing(drawn, [(0, generation)]))

    def _deliver(self, drawings: Sequence[_Drawing]) -> None:
        """Fetches tokens and sends the pieces that they make."""
        pieces: list[tuple[Generation, Piece]] = []
        for drawn, rows in drawings:
            tokens, log_probs, top, top_log_probs = (np.asarray(x) for x in drawn)
            for row, generation in rows:
                if generation.done or generation.cancelled:
                    continue
                count = generation.request.num_log_probs
                likeliest = list[tuple[int, float]]()
                if count:
                    pairs = zip(top[row].tolist(), top_log_probs[row].tolist(), strict=True)
                    likeliest = list(pairs)[:count]
                token = Token(int(tokens[row]), float(log_probs[row]), likeliest)
                self.counts.generated_tokens += 1
                if piece := generation.add(token):
                    pieces.append((generation, piece))
        self._send(pieces)
        self._free_slots()

    def _free_slots(self) -> None:
        for slot, each in list(self._active.items()):
            if each.done or each.cancelled:
                del self._active[slot]

    def _drop_stale(self) -> None:
        """Ends what nobody waits for, and what took too long."""
        now, pieces = time.monotonic(), []
        with self._changed:
            both = [*self._waiting, *self._active.values()]
            for each in both:
                if not (each.cancelled or each.done) and now > each.deadline:
                    self.counts.timed_out += 1
                    pieces.append((each, each.fail(_too_late(now - each.created))))
            self._waiting = collections.deque(
                each for each in self._waiting if not (each.cancelled or each.done)
            )
        self._send(pieces)
        self._free_slots()

    def _give_up(self, error: Exception) -> None:
        """Fails every request, and empties the slots, whose arrays may be lost; where that fails
        too, ends the engine.
        """
        self._fail_all(error)
        try:
            if self.slots is not None:
                self.slots.reset(self.weights, as_arrays(SamplingParams()))
        except Exception as again:
            logging.exception("The engine cannot go on")
            with self._changed:
                self._closing = True
            self._fail_all(again)

    def _fail_all(self, error: Exception) -> None:
        failure = computing_failed(error)
        with self._changed:
            both = [*self._waiting, *self._active.values()]
            self._waiting.clear()
        self._drawing = []
        self._active.clear()
        self._send([(each, each.fail(failure)) for each in both if not each.done])

    def _send(self, pieces: Sequence[tuple[Generation, Piece]]) -> None:
        if not pieces:
            return

        def receive() -> None:
            for generation, piece in pieces:
                generation.receive(piece)

        self.post(receive)


def _too_late(seconds: float) -> Failure:
    return Failure(
        408,
        "timeout",
        f"no answer within {seconds:.1f} s; ask for fewer tokens, or start the server with a "
        "larger --request_timeout",
    )
