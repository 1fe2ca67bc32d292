"""A prepared folder that is damaged is named, built again, and the same as before."""

import functools
import json
import os
import pathlib
import socket

import numpy as np
import pytest
from etils import epath

from configs import default
from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.config import override
from lm.data import DataConfig, open_corpus, prepare
from lm.data.cache import built, damage_of
from lm.errors import UserError
from lm.tasks.prepare import prepare_task
from lm.training.prepare import prepare_corpus


def only(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    (file,) = folder.glob(pattern)
    return file


def truncated(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flipped(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def missing(file: pathlib.Path) -> None:
    file.unlink()


def emptied(file: pathlib.Path) -> None:
    file.write_bytes(b"")


ROWS, HELD_OUT = "rows-train.array_record*", "rows-validation.array_record*"
DAMAGES = [
    (truncated, ROWS),
    (flipped, ROWS),
    (missing, ROWS),
    (emptied, HELD_OUT),
    (truncated, "manifest.json"),
    (emptied, "manifest.json"),
    (missing, "manifest.json"),
    (flipped, "counts.npy"),
    (truncated, "features.json"),
    (missing, "dataset_info.json"),
    (truncated, "checksums.json"),
    (missing, "checksums.json"),
]


@pytest.fixture(scope="module")
def corpus_of(tmp_path_factory):
    """Prepares sixty short texts, in one cache."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"text {number} " * (number % 7 + 3))
    data = DataConfig(source=f"files:{folder}/*.txt", seq_len=16, validation_fraction=0.3)
    return functools.partial(prepare, data, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("damage", "pattern"), DAMAGES)
def test_a_damaged_cache_of_rows_is_built_again_and_said(damage, pattern, corpus_of, caplog):
    corpus = corpus_of()
    before = [np.asarray(row["tokens"]).tolist() for row in corpus.rows("train")]
    damage(only(corpus.folder, pattern))
    with pytest.raises(UserError, match="prepare it again"):
        open_corpus(corpus.folder)
    caplog.clear()
    again = corpus_of()
    (line,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert line.startswith(f"{corpus.folder} is damaged (") and line.endswith(" and is built again")
    assert [np.asarray(row["tokens"]).tolist() for row in again.rows("train")] == before
    assert again.manifest == corpus.manifest and damage_of(again.folder) is None
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name]


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [(flipped, "validation.jsonl"), (truncated, "manifest.json"), (missing, "classes.npy")],
)
def test_damaged_examples_of_a_task_are_built_again(damage, pattern, tmp_path, caplog):
    lines = [f"text {number},{'ab'[number % 2]}" for number in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    config = default.get_config()
    config.task.name = "classification"
    config.data.update(source=f"files:{tmp_path}/rows.csv", seq_len=16, validation_fraction=0.4)
    data = prepare_task(config, tmp_path / "cache")
    before = data.examples(), data.array("classes").tolist(), data.manifest
    damage(only(data.folder, pattern))
    again = prepare_task(config, tmp_path / "cache")
    assert (again.examples(), again.array("classes").tolist(), again.manifest) == before
    assert "is damaged" in caplog.text


def test_a_folder_that_is_whole_is_not_built_again(tmp_path):
    made = []

    def fill(folder):
        made.append(folder)
        (folder / "numbers.txt").write_text("1 2 3")

    folder = epath.Path(tmp_path / "x")
    for _ in range(2):
        assert (built(folder, fill) / "numbers.txt").read_text() == "1 2 3"
    assert len(made) == 1
    (folder / "numbers.txt").write_text("1 2 4")  # as many bytes
    assert damage_of(folder) == "numbers.txt is not what was written"
    built(folder, fill)
    assert len(made) == 2 and damage_of(folder) is None
    folder.rmtree()
    folder.write_text("a file in its place")
    assert (built(folder, fill) / "numbers.txt").exists()


def test_the_folder_of_a_living_or_foreign_process_is_left_alone(tmp_path):
    living = tmp_path / f"x.partial-{os.getpid()}-01234567@{socket.gethostname()}"
    foreign = tmp_path / "x.partial-1-01234567@another-host"
    for path in (living, foreign):
        path.mkdir()
    built(epath.Path(tmp_path / "x"), lambda folder: (folder / "numbers.txt").write_text("1 2 3"))
    assert living.exists() and foreign.exists()


def test_a_damaged_tokenizer_that_was_made_is_made_again(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "a", "##b"]) + "\n")
    made = find_tokenizer(tmp_path, tmp_path / "cache")
    assert made is not None
    whole = made.read_text()
    made.write_text(whole[:100])
    assert find_tokenizer(tmp_path, tmp_path / "cache") == made
    assert json.loads(made.read_text()) == json.loads(whole)


def test_a_cache_in_a_bucket_is_refused():
    config = override(default.get_config(), {"cache_dir": "gs://bucket/cache"})
    with pytest.raises(UserError, match="is in a bucket; use a folder on a local disk"):
        prepare_corpus(config)


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_cache_is_refused_and_nothing_is_written(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = override(default.get_config(), {"cache_dir": value})
    with pytest.raises(UserError, match="names no folder; give one, or leave it out"):
        prepare_corpus(config)
    assert not list(tmp_path.iterdir())
