"""Reads the text of TensorFlow Datasets without TensorFlow: builders are imported first (TFDS
registers them lazily) and prepared as ArrayRecord.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lm.errors import UserError


def texts(name: str) -> Iterator[tuple[str | None, int, str]]:
    """Yields (split, index within the TFDS split, text) for each example of dataset `name`.

    Splits are those of `examples`. Set TFDS_DATA_DIR to say where datasets are stored (default
    `~/tensorflow_datasets`).

    Args:
        name: `NAME` or `NAME/CONFIG`, as for `tfds.builder`.

    Raises:
        UserError: the dataset is unknown, cannot be fetched or prepared, has no `train` split or
            no single feature of text, or holds text that is not UTF-8.
    """
    builder = prepared(name)
    feature = text_feature(name, builder.info.features)
    for split, tfds_split, index, example in examples(name, builder, ("validation", "test")):
        try:
            yield split, index, example[feature].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"tfds:{name} {tfds_split} example {index} is not UTF-8 at byte {error.start}; "
                "choose another dataset, or mend its text and give it as files:PATTERN"
            ) from None


def examples(
    name: str, builder: Any, held_out: Sequence[str]
) -> Iterator[tuple[str | None, str, int, Any]]:
    """Yields (split, TFDS split, index within that, example) of a prepared builder.

    Split is "validation", the first of `held_out` that the dataset has, or "train"; None where it
    has only `train`. Validation comes first, so that a text that stands in both is kept there and
    dropped from train.

    Raises:
        UserError: the dataset has no `train` split.
    """
    splits = builder.info.splits
    if "train" not in splits:
        raise UserError(f"tfds:{name} has no train split, only {sorted(splits)}")
    other = next((split for split in held_out if split in splits), None)
    for split, found in [("validation", other), ("train", "train")] if other else [(None, "train")]:
        for index, example in enumerate(builder.as_data_source(split=found)):
            yield split, found, index, example


def fingerprint(name: str) -> Any:
    """What can change under the same name: the release of TFDS and the folder it reads."""
    return [importlib.metadata.version("tensorflow-datasets"), _data_dir(), name]


def text_feature(name: str, features: Any) -> str:
    """The feature that holds the text: `text`, `content`, or the only one of type Text.

    Raises:
        UserError: there is none, or several and none of those names.
    """
    import tensorflow_datasets as tfds

    held = {key for key in features if isinstance(features[key], tfds.features.Text)}
    for candidate in ("text", "content"):
        if candidate in held:
            return candidate
    if len(held) != 1:
        raise UserError(
            f"tfds:{name} has {len(held)} features of text {sorted(held)}, and none is called "
            "'text' or 'content'; choose another dataset, or write its text as files:PATTERN"
        )
    return held.pop()


def load_builder(name: str) -> Any:
    """`tfds.builder(name)` for ArrayRecord, its module imported first; fetches nothing.

    Raises:
        UserError: TFDS has no such dataset or configuration, its module needs what is missing, or
            the name is of a namespace, for which TFDS downloads code and runs it.
    """
    if ":" in name:
        raise UserError(
            f"tfds:{name}: datasets of the namespace {name.partition(':')[0]} bring code of their "
            "own, which is not run; write its text as files:PATTERN"
        )
    import tensorflow_datasets as tfds

    try:
        # Builders that have not moved to tensorflow_datasets/datasets are only found once imported.
        module = f"tensorflow_datasets.text.{name.partition('/')[0]}"
        if importlib.util.find_spec(module):
            importlib.import_module(module)
        return tfds.builder(name, file_format="array_record", data_dir=_data_dir())
    except Exception as error:  # TFDS and its builders raise many kinds, all about this name
        raise UserError(
            f"tfds:{name} cannot be opened ({_first_line(error)}); see "
            "https://www.tensorflow.org/datasets/catalog for names and configurations"
        ) from error


def prepared(name: str) -> Any:
    """The builder of a dataset, on disk as ArrayRecord; fetched and prepared where it is not.

    Raises:
        UserError: the dataset is unknown, or cannot be fetched or prepared.
    """
    builder = load_builder(name)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk, Beam, TensorFlow: all end in the same remedy
        raise UserError(
            f"tfds:{name} cannot be fetched and prepared ({_first_line(error)}); prepare it where "
            "there is a network and copy it to TFDS_DATA_DIR, or use stdlib or files:PATTERN"
        ) from error
    return builder


def _data_dir() -> str | None:
    return os.environ.get("TFDS_DATA_DIR")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
