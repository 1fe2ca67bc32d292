"""How are rows stored? As ArrayRecord files of `tf.train.Example` with the metadata of TensorFlow
Datasets beside them, so that `tfds.builder_from_directory(folder)` reads them anywhere. Needs no
TensorFlow.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from lm.data.packing import Rows

NAME = "rows"  # of the TFDS dataset; its files are rows-train.array_record-00000-of-00001, ...
SHARD_BYTES = 256 << 20


def smallest_dtype(largest: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds `largest`."""
    for dtype in (np.uint8, np.uint16):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int32)


class SplitWriter:
    """Writes the rows of one split, in files of about `shard_bytes` before compression."""

    def __init__(
        self,
        folder: epath.Path,
        split: str,
        *,
        length: int,
        vocab_size: int,
        shard_bytes: int = SHARD_BYTES,
    ):
        """Creates no file until the first row.

        Args:
            folder: where the files go; ArrayRecord writes to local file systems only.
            split: "train" or "validation".
            length: L of the rows.
            vocab_size: decides how many bytes a token takes.
            shard_bytes: a new file begins when one has this many.
        """
        self.split = split
        self.shard_lengths: list[int] = []  # rows in each file
        self.bytes_written = 0  # of all records, before compression
        self._folder, self._limit = folder, shard_bytes
        self._tokens_dtype = smallest_dtype(vocab_size - 1)
        self._segments_dtype = smallest_dtype(length)
        self._writer: Any = None  # of the last shard
        self._shard_bytes = 0

    def write(self, rows: Rows) -> None:
        """Appends rows."""
        tokens = rows.tokens.astype(self._tokens_dtype)
        segments = rows.segments.astype(self._segments_dtype)
        for record in _serialized(tokens, segments, rows.bytes):
            if not self.shard_lengths or self._shard_bytes >= self._limit:
                self._next_shard()
            self._writer.write(record)
            self._shard_bytes += len(record)
            self.shard_lengths[-1] += 1

    def close(self) -> None:
        """Closes the last file and gives all of them the names that TFDS expects."""
        self._close_shard()
        number = len(self.shard_lengths)
        for shard in range(number):
            self._unnumbered(shard).rename(
                self._folder / f"{NAME}-{self.split}.array_record-{shard:05d}-of-{number:05d}"
            )

    def _next_shard(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        self._close_shard()
        path = self._unnumbered(len(self.shard_lengths))
        # One record a group, so that any row is read without its neighbours.
        self._writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        self.shard_lengths.append(0)

    def _close_shard(self) -> None:
        if self.shard_lengths:
            self._writer.close()
            self.bytes_written += self._shard_bytes
            self._shard_bytes = 0

    def _unnumbered(self, shard: int) -> epath.Path:
        return self._folder / f"{self.split}-{shard:05d}"  # the number of files is not known yet


def features(length: int, vocab_size: int) -> Any:
    """The `tfds.features.FeaturesDict` of a row: tokens [L + 1], segments [L], bytes []."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(
                shape=(length + 1,), dtype=smallest_dtype(vocab_size - 1).type, encoding="bytes"
            ),
            "segments": tfds.features.Tensor(
                shape=(length,), dtype=smallest_dtype(length).type, encoding="bytes"
            ),
            "bytes": tfds.features.Scalar(np.int32),
        }
    )


def write_metadata(
    folder: epath.Path, writers: list[SplitWriter], *, length: int, vocab_size: int
) -> None:
    """Writes `dataset_info.json` and `features.json` beside the closed files of `writers`."""
    import tensorflow_datasets as tfds

    splits = [
        tfds.core.SplitInfo(
            name=writer.split,
            shard_lengths=writer.shard_lengths,
            num_bytes=writer.bytes_written,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder,
                dataset_name=NAME,
                split=writer.split,
                filetype_suffix="array_record",
            ),
        )
        for writer in writers
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(length, vocab_size),
        split_infos=splits,
        check_data=False,  # the check would read through TensorFlow
    )


def read_rows(folder: epath.Path, split: str) -> Any:
    """The rows of a split: a sequence of {tokens [L + 1], segments [L], bytes []}."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]


def _serialized(tokens: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> Iterator[bytes]:
    """What `features(...).serialize_example` gives for each row, in a third of the time."""
    from tensorflow_datasets import proto  # it makes its classes when imported

    Example = proto.tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    Feature = proto.tf_feature_pb2.Feature  # pyright: ignore[reportAttributeAccessIssue]
    for row_tokens, row_segments, length in zip(tokens, segments, lengths.tolist(), strict=True):
        values = {
            "tokens": Feature(bytes_list={"value": [row_tokens.tobytes()]}),
            "segments": Feature(bytes_list={"value": [row_segments.tobytes()]}),
            "bytes": Feature(int64_list={"value": [length]}),
        }
        yield Example(features={"feature": values}).SerializeToString()
