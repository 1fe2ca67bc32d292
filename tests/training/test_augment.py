"""Words are left out, swapped and hidden as whole words, by a pure function of key and row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.data import ByteTokenizer
from lm.model.transformer import Batch
from lm.training.regularization.augment import Augmentation

TOKENIZER = ByteTokenizer()
PAIRS = [
    ("the cat sat on a mat", "it was a black cat"),
    ("one two three", "four five six seven"),
    ("a b c d e f g h i j", "k l"),
]
LENGTH = 48


def batch_of(pairs):
    """Rows of END a END b END."""
    inputs, types, sizes = [], [], []
    for pair in pairs:
        parts = [TOKENIZER.encode_batch([text])[0].ids for text in pair]
        row = np.concatenate([[255], parts[0], [255], parts[1], [255]])
        kinds = np.repeat([0, 1], [len(parts[0]) + 2, len(parts[1]) + 1])
        sizes.append(len(row))
        inputs.append(np.pad(row, (0, LENGTH - len(row)), constant_values=255))
        types.append(np.pad(kinds, (0, LENGTH - len(row))))
    size = np.array(sizes)[:, None]
    shape = (len(pairs), LENGTH)
    return Batch(
        inputs=jnp.array(np.stack(inputs), jnp.int32),
        targets=jnp.zeros((len(pairs), 1), jnp.int32),
        weights=jnp.ones((len(pairs), 1)),
        segments=jnp.array(np.arange(LENGTH) < size, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(LENGTH), shape),
        token_types=jnp.array(np.stack(types)),
        target_positions=jnp.array(size - 1),
    )


@functools.cache
def augment(delete=0.0, swap=0.0, hide=0.0):
    return jax.jit(Augmentation(TOKENIZER, delete, swap, hide).__call__)


def texts(batch):
    """The two texts of every row as lists of words."""
    found = []
    for row, real in zip(np.asarray(batch.inputs), np.asarray(batch.segments), strict=True):
        inner = bytes(row[real > 0].tolist()).strip(b"\xff").split(b"\xff")
        found.append([part.replace(b"\xfe", b"?").decode().split() for part in inner])
    return found


BATCH = batch_of(PAIRS)
WORDS = [[text.split() for text in pair] for pair in PAIRS]
KEYS = [jax.random.key(seed) for seed in range(8)]


def is_part(words, whole):
    rest = iter(whole)
    return all(word in rest for word in words)


def test_deletion_leaves_words_in_order_and_at_least_one_of_each_text():
    for rate in (0.5, 0.999):
        for found in (texts(augment(delete=rate)(BATCH, key)) for key in KEYS):
            for kept, whole in zip(found, WORDS, strict=True):
                assert all(map(is_part, kept, whole)) and all(kept)
                assert rate < 0.9 or [len(words) for words in kept] == [1, 1]


def test_deletion_moves_segments_types_and_places_along():
    found = augment(delete=0.5)(BATCH, KEYS[0])
    size = np.asarray(found.segments).sum(1)
    assert (size < np.asarray(BATCH.segments).sum(1)).any()
    np.testing.assert_array_equal(found.target_positions[:, 0], size - 1)
    np.testing.assert_array_equal(found.segments, np.arange(LENGTH) < size[:, None])
    inputs, types = np.asarray(found.inputs), np.asarray(found.token_types)
    assert (inputs[np.arange(LENGTH) >= size[:, None]] == 255).all()
    for row, kinds, n in zip(inputs, types, size, strict=True):
        middle = np.flatnonzero(row[1 : n - 1] == 255)[0] + 1
        np.testing.assert_array_equal(kinds, (np.arange(LENGTH) > middle) & (np.arange(LENGTH) < n))


def test_swapping_keeps_the_words_of_each_text():
    moved = 0
    for found in (texts(augment(swap=0.6)(BATCH, key)) for key in KEYS):
        for now, before in zip(found, WORDS, strict=True):
            assert [sorted(text) for text in now] == [sorted(text) for text in before]
            moved += now != before
    assert moved > 12


def test_hidden_words_have_the_share_that_was_asked_for_and_markers_stay():
    long = batch_of([("a b c d e f g h i j k l m n", "p q r s t")] * 50)
    # Rows that are the same draw the same: each has a word of its own.
    long = long.replace(inputs=long.inputs.at[:, 1].set(jnp.arange(50) + 60))
    share = []
    for key in KEYS:
        inputs = np.asarray(augment(hide=0.3)(long, key).inputs)
        before = np.asarray(long.inputs)
        np.testing.assert_array_equal((inputs == 255), (before == 255))
        words = (before != 255) & (before != ord(" "))
        share.append((inputs == 254)[words].mean())
    np.testing.assert_allclose(np.mean(share), 0.3, atol=0.02)


def test_a_draw_depends_on_key_and_row_alone():
    rule = augment(0.3, 0.3, 0.3)
    both = rule(BATCH, KEYS[0]).inputs
    np.testing.assert_array_equal(rule(batch_of(PAIRS[::-1]), KEYS[0]).inputs, both[::-1])
    np.testing.assert_array_equal(rule(BATCH, KEYS[0]).inputs, both)
    assert (rule(BATCH, KEYS[1]).inputs != both).any()


def test_off_is_the_batch_itself():
    assert Augmentation(TOKENIZER, 0.0, 0.0, 0.0)(BATCH, KEYS[0]) is BATCH
