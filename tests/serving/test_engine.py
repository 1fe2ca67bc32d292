"""The engine gives slots to those who wait, drops who has left, and refuses what is too much."""

import threading
import time

import numpy as np
import pytest

from lm.data import ByteTokenizer
from lm.devices import sharding
from lm.generation import SamplingParams
from lm.serving.engine import Engine
from lm.serving.generation import Failure, Generation, Request
from lm.serving.row_queue import RowQueue
from lm.serving.slot_sampling import Drawn
from lm.serving.weights import fixed_weights


class CountingSlots:
    """Slots whose text counts up from the prompt's last token, slowly."""

    number = 2

    def __init__(self):
        self.last, self.fails, self.broken = [0, 0], False, False

    def admit(self, weights, slot, prompt, *_):
        self.last[slot] = int(prompt[-1])
        return self._drawn([slot])

    def decode(self, weights, active):
        time.sleep(0.002)
        if self.fails:
            self.fails = False
            raise RuntimeError("RESOURCE_EXHAUSTED: of a test")
        return self._drawn(range(2))

    def reset(self, *_):
        self.last = [0, 0]
        if self.broken:
            raise RuntimeError("RESOURCE_EXHAUSTED: of a test, again")

    def _drawn(self, slots):
        for slot in slots:
            self.last[slot] = (self.last[slot] + 1) % 200
        tokens = np.array([self.last[slot] for slot in slots])
        return Drawn(tokens, np.zeros(len(tokens)), tokens[:, None], np.zeros((len(tokens), 1)))


@pytest.fixture
def engine():
    rows = RowQueue(sharding.make_mesh(data=1), {"wrong": (no_rows, 2)})
    found = Engine(fixed_weights({}), CountingSlots(), rows, max_waiting=4)
    found.start()
    yield found
    found.close()


def no_rows(params, rows):
    raise RuntimeError("RESOURCE_EXHAUSTED: of a test")


class Client:
    """A generation, and the pieces that came."""

    def __init__(self, first, size, timeout=10.0):
        request = Request(np.array([first]), SamplingParams(), 0, 0, size)
        self.pieces, self.ended = [], threading.Event()
        self.generation = Generation(request, ByteTokenizer(), self.receive, timeout)

    def receive(self, piece):
        self.pieces.append(piece)
        if piece.finish_reason or piece.failure:
            self.ended.set()

    def last(self):
        assert self.ended.wait(10)
        return self.pieces[-1]


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_more_texts_than_slots_are_all_written_and_keep_apart(engine):
    clients = [Client(48 + 10 * i, 5) for i in range(6)]
    engine.submit([each.generation for each in clients[:3]])
    until(lambda: engine.num_active == 2)
    engine.submit([each.generation for each in clients[3:]])
    for i, client in enumerate(clients):
        assert client.last().text == "".join(chr(48 + 10 * i + n) for n in range(1, 6))
    assert engine.counts.generated_tokens == 30


def test_who_has_left_frees_the_slot(engine):
    long, waits = [Client(65, 10_000) for _ in range(2)], Client(97, 3)
    engine.submit([each.generation for each in (*long, waits)])
    until(lambda: engine.num_active == 2)
    engine.cancel([long[0].generation])
    assert waits.last().text == "bcd"
    assert engine.counts.cancelled == 1
    engine.cancel([long[1].generation])
    until(lambda: engine.num_active == 0)


def test_a_full_queue_and_a_late_answer_are_told_apart(engine):
    slow = [Client(65, 10_000, timeout=0.3) for _ in range(4)]
    engine.submit([each.generation for each in slow])
    with pytest.raises(Failure, match="more than the 4 that may") as full:
        engine.submit([Client(65, 1).generation for _ in range(5)])
    assert full.value.status == 400  # of no use to try again
    with pytest.raises(Failure, match="try again later") as full:
        engine.submit([Client(65, 1).generation for _ in range(4)])
    assert full.value.status == 429
    for client in slow:
        failure = client.last().failure
        assert failure.status == 408 and "--request_timeout" in failure.message
    assert engine.counts.timed_out == 4


def test_an_engine_that_failed_tells_who_asked_and_goes_on(engine):
    engine.slots.fails = True
    client = Client(65, 50)
    engine.submit([client.generation])
    assert client.last().failure.status == 500
    again = Client(97, 2)
    engine.submit([again.generation])
    assert again.last().text == "bc"


def test_rows_that_failed_leave_texts_alone(engine):
    client = Client(65, 40)
    engine.submit([client.generation])
    (row,) = engine.submit_rows("wrong", [{"inputs": np.zeros(1)}], 0)
    with pytest.raises(Failure, match="RESOURCE_EXHAUSTED") as failed:
        row.result(10)
    assert failed.value.status == 500
    assert client.last().finish_reason == "length"


def test_an_engine_that_cannot_go_on_refuses_and_keeps_nobody_waiting(engine):
    engine.slots.fails = engine.slots.broken = True
    clients = [Client(65, 50) for _ in range(4)]
    engine.submit([each.generation for each in clients])
    assert {each.last().failure.status for each in clients} == {500}
    until(lambda: not engine.alive)
    with pytest.raises(Failure, match="shutting down"):
        engine.submit([Client(65, 1).generation])


def test_a_call_after_the_end_is_refused_as_it_would_never_run(engine):
    done = threading.Event()
    engine.call(done.set)
    assert done.wait(10)
    engine.close()
    with pytest.raises(Failure, match="shutting down"):
        engine.call(done.set)


def test_what_was_asked_is_answered_before_the_end(engine):
    client = Client(65, 40)
    engine.submit([client.generation])
    engine.close()
    assert client.last().finish_reason == "length"
    with pytest.raises(Failure, match="shutting down"):
        engine.submit([Client(65, 1).generation])
