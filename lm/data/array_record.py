"""Stores rows as ArrayRecord files of `tf.train.Example` with the metadata of TensorFlow Datasets,
so that `tfds.builder_from_directory(folder)` reads them anywhere, without TensorFlow.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

NAME = "rows"  # of the TFDS dataset; its files are rows-train.array_record-00000-of-00001, ...
SHARD_BYTES = 256 << 20


def smallest_dtype(largest: int) -> np.dtype:
    """The smallest of uint8, uint16 and int32 that holds `largest`."""
    for dtype in (np.uint8, np.uint16):
        if largest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int32)


Fields = Mapping[str, np.ndarray]  # of one row: an array of each name's shape and type


def text_fields(length: int, vocab_size: int, pairs: bool = False) -> Fields:
    """Of a row of text: tokens [L + 1], segments [L], bytes []; of pairs also encoder_tokens and
    encoder_segments, [L].
    """
    tokens, segments = smallest_dtype(vocab_size - 1), smallest_dtype(length)
    fields = {
        "tokens": np.zeros(length + 1, tokens),
        "segments": np.zeros(length, segments),
        "bytes": np.zeros((), np.int32),
    }
    encoder = {
        "encoder_tokens": np.zeros(length, tokens),
        "encoder_segments": np.zeros(length, segments),
    }
    return fields | encoder if pairs else fields


class SplitWriter:
    """Writes the rows of one split, in files of about `shard_bytes` before compression."""

    def __init__(
        self, folder: epath.Path, split: str, fields: Fields, shard_bytes: int = SHARD_BYTES
    ):
        """Creates no file until the first row.

        Args:
            folder: where the files go; ArrayRecord writes to local file systems only.
            split: "train" or "validation".
            fields: what a row holds.
            shard_bytes: a new file begins when one has this many.
        """
        self.split = split
        self.shard_lengths: list[int] = []  # rows in each file
        self.bytes_written = 0  # of all records, before compression
        self._folder, self._limit, self._fields = folder, shard_bytes, fields
        self._writer: Any = None  # of the last shard
        self._shard_bytes = 0

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows: of each field, [N, ...]."""
        arrays = {name: rows[name].astype(field.dtype) for name, field in self._fields.items()}
        for record in _serialized(arrays):
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


def features(fields: Fields) -> Any:
    """The `tfds.features.FeaturesDict` of a row; what has no axes is an int32."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            name: tfds.features.Tensor(shape=field.shape, dtype=field.dtype.type, encoding="bytes")
            if field.shape
            else tfds.features.Scalar(np.int32)
            for name, field in fields.items()
        }
    )


def write_metadata(folder: epath.Path, writers: list[SplitWriter], fields: Fields) -> None:
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
        features=features(fields),
        split_infos=splits,
        check_data=False,  # the check would read through TensorFlow
    )


def read_rows(folder: epath.Path, split: str) -> Any:
    """The rows of a split: a sequence of dictionaries of arrays."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]


def _serialized(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """What `features(...).serialize_example` gives for each row, in a third of the time."""
    from tensorflow_datasets import proto  # it makes its classes when imported

    Example = proto.tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
    Feature = proto.tf_feature_pb2.Feature  # pyright: ignore[reportAttributeAccessIssue]

    def feature(value: np.ndarray) -> Any:
        if value.ndim:
            return Feature(bytes_list={"value": [value.tobytes()]})
        return Feature(int64_list={"value": [int(value)]})

    for row in zip(*arrays.values(), strict=True):
        values = {name: feature(value) for name, value in zip(arrays, row, strict=True)}
        yield Example(features={"feature": values}).SerializeToString()
