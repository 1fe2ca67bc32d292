"""Every batch is a function of seed and number alone, and evaluation sees each row once."""

import functools
import itertools
import signal
import subprocess
import sys

import numpy as np
import pytest

from lm.data import eval_batches, train_batches
from lm.errors import UserError

LENGTH = 4


class Rows:
    """Rows that say which they are."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return {
            "tokens": np.full(LENGTH + 1, index, np.uint16),
            "segments": np.ones(LENGTH, np.uint8),
            "bytes": index + 1,
        }


class ManyRows(Rows):
    """The same, read together as TFDS reads them."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def names(batch):
    return batch["tokens"][:, 0].tolist()


def first(batches, number):
    return [names(batch) for batch in itertools.islice(batches, number)]


def test_batches_are_int32_arrays_of_the_rows():
    batch = next(train_batches(Rows(9), batch_size=3, seed=0))
    shapes = {key: value.shape for key, value in batch.items()}
    assert shapes == {"tokens": (3, LENGTH + 1), "segments": (3, LENGTH), "bytes": (3,)}
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert batch["bytes"].tolist() == [name + 1 for name in names(batch)]


def parts(size, count):
    """The places of a batch that each of `count` hosts holds."""
    return np.split(np.arange(size), count)


def test_batch_k_is_the_same_whatever_the_start_and_the_number_of_hosts():
    rows = Rows(30)
    whole = first(train_batches(rows, batch_size=4, seed=1), 40)
    for start in (1, 7, 39):
        assert first(train_batches(rows, batch_size=4, seed=1, start=start), 1) == [whole[start]]
    for count in (2, 4):
        hosts = [
            first(train_batches(rows, batch_size=4, seed=1, start=3, places=places), 20)
            for places in parts(4, count)
        ]
        joined = [list(itertools.chain(*each)) for each in zip(*hosts, strict=True)]
        assert joined == whole[3:23]


def test_reading_rows_together_or_one_by_one_gives_the_same_batches():
    one = first(train_batches(Rows(30), batch_size=4, seed=1), 20)
    assert first(train_batches(ManyRows(30), batch_size=4, seed=1), 20) == one


def test_each_epoch_holds_every_row_once_in_another_order():
    order = list(itertools.chain(*first(train_batches(Rows(10), batch_size=4, seed=5), 10)))
    epochs = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_another_seed_is_another_order():
    one = first(train_batches(Rows(50), batch_size=5, seed=0), 5)
    assert first(train_batches(Rows(50), batch_size=5, seed=1), 5) != one


def test_fewer_rows_than_a_batch_is_an_error():
    with pytest.raises(UserError, match="7 rows, fewer than batch_size=8"):
        train_batches(Rows(7), batch_size=8, seed=0)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"seed": -1}])
def test_arguments_out_of_range_are_errors_at_once(changes):
    with pytest.raises(UserError):
        train_batches(Rows(9), **({"batch_size": 3, "seed": 0} | changes))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("limit", [None, 1, 5, 8, 100])
def test_evaluation_sees_every_row_once_and_fills_up_with_padding(limit, count):
    number = min(limit or 10, 10)
    hosts = [
        list(eval_batches(Rows(10), batch_size=4, limit=limit, places=places))
        for places in parts(4, count)
    ]
    batches = list(itertools.chain(*hosts))
    assert {len(host) for host in hosts} == {-(-number // 4)}
    assert all(batch["tokens"].shape == (4 // count, LENGTH + 1) for batch in batches)
    real = [batch["segments"][:, 0] > 0 for batch in batches]
    seen = np.concatenate([b["tokens"][r, 0] for b, r in zip(batches, real, strict=True)])
    assert len(set(seen.tolist())) == len(seen) == number
    padding = [batch["bytes"][~r] for batch, r in zip(batches, real, strict=True)]
    assert not np.concatenate(padding).any()


def test_an_evaluation_sample_is_the_same_each_time_and_part_of_any_larger_one():
    def sample(limit):
        batches = eval_batches(Rows(100), batch_size=5, limit=limit)
        return list(itertools.chain(*(names(batch) for batch in batches)))

    assert sample(10) == sample(10) == sample(20)[:10] == sample(None)[:10]
    assert sample(10) != list(range(10))
    with pytest.raises(UserError):
        sample(0)


_ENDLESS = """
import sys
import numpy as np
from lm.data import train_batches
rows = [{"tokens": np.zeros(9), "segments": np.ones(8), "bytes": 1}] * 20
batches = train_batches(rows, batch_size=4, seed=0)
next(batches)
print("begun", flush=True)
if sys.argv[1] == "leave":
    sys.exit(0)
for batch in batches:
    pass
"""


@pytest.mark.parametrize("how", ["leave", "interrupt"])
def test_leaving_an_endless_iterator_does_not_hang(how):
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (b"KeyboardInterrupt" in errors) == (how == "interrupt"), errors


def test_importing_the_data_room_imports_none_of_the_heavy_libraries():
    heavy = ["jax", "tensorflow", "tensorflow_datasets", "grain", "tokenizers", "array_record"]
    code = f"import sys, lm.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_balanced_batches_hold_every_class_equally_often_and_use_up_each():
    classes = np.repeat([0, 1, 2], [3, 10, 27])
    groups = [(np.flatnonzero(classes == each), 1 / 3) for each in range(3)]
    options = {"batch_size": 6, "seed": 1, "groups": groups}
    whole = first(train_batches(Rows(40), **options), 30)
    for batch in whole:
        assert np.bincount(classes[batch]).tolist() == [2, 2, 2]
    for each in range(3):
        drawn = [row for batch in whole for row in batch if classes[row] == each]
        size = int((classes == each).sum())
        for turn in range(len(drawn) // size):
            assert sorted(drawn[turn * size :][:size]) == np.flatnonzero(classes == each).tolist()
    assert first(train_batches(Rows(40), start=7, **options), 3) == whole[7:10]
