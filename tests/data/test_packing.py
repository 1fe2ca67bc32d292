"""Cutting a stream into rows keeps every token, byte and border between documents."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.packing import Packer
from lm.data.tokenizer import Encoded

END = 9
document = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), max_size=12).flatmap(
    lambda pairs: st.integers(0, 5).map(
        lambda tail: Encoded(
            np.array([token for token, _ in pairs], np.int32),
            np.array([*(length for _, length in pairs), tail], np.int32),
        )
    )
)
documents = st.lists(document, max_size=12)
lengths = st.integers(1, 9)


def pack(documents, length, every=1):
    """All rows, taken off after each `every` documents, as one Rows; and the stream itself."""
    packer = Packer(length, END)
    parts = []
    for number, document in enumerate(documents):
        packer.add(document)
        if number % every == 0:
            parts.append(packer.take())
    parts += [packer.take(), packer.finish()]
    rows = type(parts[0])(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    stream = [END]
    for document in documents:
        stream += [*document.ids.tolist(), END]
    return rows, stream


@settings(deadline=None)
@given(documents, lengths)
def test_every_token_but_the_first_end_is_a_target_exactly_once_and_in_order(documents, length):
    rows, stream = pack(documents, length)
    real = rows.segments > 0
    assert rows.tokens[:, 1:][real].tolist() == stream[1:]
    assert rows.tokens[:, :-1][real].tolist() == stream[:-1]
    assert (np.diff(real.reshape(-1).astype(int)) <= 0).all()  # padding only at the very end
    assert (~real).sum() < length
    assert (rows.tokens[:, 1:][~real] == END).all()


@settings(deadline=None)
@given(documents, lengths)
def test_a_row_holds_l_plus_1_tokens_from_i_times_l(documents, length):
    rows, stream = pack(documents, length)
    assert len(rows.tokens) == -(-(len(stream) - 1) // length)
    for i, row in enumerate(rows.tokens.tolist()):
        expected = stream[i * length : i * length + length + 1]
        assert row == expected + [END] * (length + 1 - len(expected))


@settings(deadline=None)
@given(documents, lengths)
def test_bytes_of_all_rows_sum_to_those_of_all_documents(documents, length):
    rows, _ = pack(documents, length)
    assert rows.bytes.sum() == sum(int(document.byte_lengths.sum()) for document in documents)
    weights = np.concatenate([document.byte_lengths for document in documents] or [np.zeros(0)])
    for i, total in enumerate(rows.bytes):
        assert total == weights[i * length : (i + 1) * length].sum()


@settings(deadline=None)
@given(documents, lengths)
def test_segments_count_from_one_and_change_at_each_end(documents, length):
    rows, _ = pack(documents, length)
    for row, segments in zip(rows.tokens, rows.segments, strict=True):
        real = int((segments > 0).sum())
        assert (segments[real:] == 0).all()
        assert real == 0 or segments[0] == 1
        opens = row[1:real] == END
        assert (np.diff(segments[:real]) == opens).all()


@settings(deadline=None)
@given(documents, lengths, st.integers(1, 5))
def test_rows_do_not_depend_on_how_often_they_are_taken(documents, length, every):
    once, _ = pack(documents, length)
    other, _ = pack(documents, length, every)
    for one, two in zip(once, other, strict=True):
        np.testing.assert_array_equal(one, two)
