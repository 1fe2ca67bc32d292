"""A prepared corpus is what its manifest says, and it is whole or absent, whatever happens."""

import functools
import itertools
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from lm.data import DataConfig, Document, array_record, documents, open_corpus, prepare, sources
from lm.data import corpus as corpus_module
from lm.data.packing import Packer
from lm.errors import UserError

VOCABULARY = {"bytes": None, "bpe": 400, "wordpiece": 700, "unigram": 330}
WORDS = ["softmax", "größe", "attention", "naïve", "日本", "keys,", "queries.", "Ελληνικά"]


def write_texts(folder, number=40, seed=0):
    folder.mkdir(exist_ok=True)
    chance = random.Random(seed)
    words = WORDS + ["".join(chance.choices("aeioustnrl", k=5)) for _ in range(200)]
    for i in range(number):
        text = " ".join(chance.choices(words, k=chance.randint(1, 60))) + f"  {i}\n"
        (folder / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    return f"files:{folder}/*.txt"


def prepared(tmp_path, cache=None, **changes):
    if "source" not in changes:
        changes["source"] = write_texts(tmp_path / "texts")
    options = {"seq_len": 32, "validation_fraction": 0.3}
    return prepare(DataConfig(**(options | changes)), cache or tmp_path / "cache")


def stream(rows):
    """Tokens of a split, as they were before they were cut into rows."""
    read = [rows[i] for i in range(len(rows))]
    real = np.stack([row["segments"] for row in read]) > 0
    targets = np.stack([row["tokens"] for row in read])[:, 1:][real]
    return np.concatenate([read[0]["tokens"][:1], targets])


def texts_of(corpus, split):
    tokens = stream(corpus.rows(split))
    ends = np.flatnonzero(tokens == corpus.tokenizer.end)
    assert ends[0] == 0 and ends[-1] == len(tokens) - 1
    return [
        corpus.tokenizer.decode(tokens[start + 1 : stop])
        for start, stop in itertools.pairwise(ends)
    ]


@pytest.mark.parametrize("tokenizer", VOCABULARY)
def test_all_text_is_there_in_one_split_or_the_other(tokenizer, tmp_path):
    corpus = prepared(tmp_path, tokenizer=tokenizer, vocab_size=VOCABULARY[tokenizer])
    train, validation = texts_of(corpus, "train"), texts_of(corpus, "validation")
    source = [document.text for document in documents(corpus.manifest["source"])]
    assert sorted(train + validation) == sorted(source)
    assert train == [text for text in source if text in set(train)]  # the order of the source


@pytest.mark.parametrize("tokenizer", VOCABULARY)
def test_bytes_of_the_rows_sum_to_the_bytes_of_the_text(tokenizer, tmp_path):
    corpus = prepared(tmp_path, tokenizer=tokenizer, vocab_size=VOCABULARY[tokenizer])
    for split, facts in corpus.manifest["splits"].items():
        rows = corpus.rows(split)
        size = sum(len(text.encode()) for text in texts_of(corpus, split))
        assert sum(row["bytes"] for row in rows) == size == facts["bytes"]
        assert len(rows) == facts["rows"]
        assert len(stream(rows)) - 1 == facts["tokens"]
        assert facts["bytes_per_token"] == size / facts["tokens"]


def test_every_byte_of_text_is_a_target_exactly_once(tmp_path):
    corpus = prepared(tmp_path)
    for split in ("train", "validation"):
        expected = b"".join(text.encode() + b"\xff" for text in texts_of(corpus, split))
        assert stream(corpus.rows(split))[1:].tobytes() == expected


def test_a_document_never_crosses_splits(tmp_path):
    source = write_texts(tmp_path / "texts")
    before = set(texts_of(prepared(tmp_path, source=source), "validation"))
    (tmp_path / "texts" / "010.txt").unlink()
    write_texts(tmp_path / "more", seed=1)
    after = prepared(tmp_path, source=f"files:{tmp_path}/[tm]*/*.txt")
    assert before - set(texts_of(after, "train")) == before
    wider = prepared(tmp_path, source=source, validation_fraction=0.6)
    assert before - set(texts_of(wider, "train")) == before


def test_copies_are_dropped_and_counted(tmp_path):
    source = write_texts(tmp_path / "texts")
    alone = prepared(tmp_path, source=source)
    for i in range(7):
        text = (tmp_path / "texts" / f"{i:03d}.txt").read_bytes()
        (tmp_path / "texts" / f"z{i}.txt").write_bytes(text)
    (tmp_path / "texts" / "zz.txt").write_bytes(b"")
    copied = prepared(tmp_path, source=source)
    assert copied.folder != alone.folder
    assert (copied.manifest["duplicates"], copied.manifest["empty"]) == (7, 1)
    assert copied.manifest["hash"] == alone.manifest["hash"]
    assert copied.manifest["splits"] == alone.manifest["splits"]


def test_splits_of_the_source_are_kept_and_copies_stay_in_validation(tmp_path, monkeypatch):
    def own_splits(_):
        yield Document("v", "held out " * 9, "validation")
        yield Document("a", "held out " * 9, "train")
        yield Document("b", "for training " * 9, "train")

    own = sources.Source(own_splits, lambda _: "own")
    monkeypatch.setitem(sources.SOURCES, "own", own)
    corpus = prepared(tmp_path, source="own:x", validation_fraction=0.999)
    assert texts_of(corpus, "validation") == ["held out " * 9]
    assert texts_of(corpus, "train") == ["for training " * 9]


def test_counts_are_how_often_each_token_is_a_training_target(tmp_path):
    corpus = prepared(tmp_path, tokenizer="bpe", vocab_size=400)
    expected = np.bincount(stream(corpus.rows("train"))[1:], minlength=400)
    np.testing.assert_array_equal(corpus.counts(), expected)


def test_any_user_of_tfds_can_read_it(tmp_path):
    corpus = prepared(tmp_path)
    builder = tfds.builder_from_directory(corpus.folder)
    assert set(builder.info.splits) == {"train", "validation"}
    assert builder.info.splits["train"].num_examples == corpus.manifest["splits"]["train"]["rows"]
    row = builder.as_data_source(split="train")[0]
    assert row["tokens"].shape == (33,) and row["segments"].shape == (32,)
    assert "tensorflow" not in sys.modules


def test_records_are_those_that_tfds_would_write():
    features = array_record.features(array_record.text_fields(4, 300))
    row = {
        "tokens": np.array([0, 299, 2, 3, 4], np.uint16),
        "segments": np.array([1, 1, 2, 0], np.uint8),
        "bytes": np.int32(7),
    }
    (ours,) = array_record._serialized({name: np.array(value)[None] for name, value in row.items()})
    theirs = features.serialize_example(row)
    for key, value in features.deserialize_example_np(theirs).items():
        mine = features.deserialize_example_np(ours)[key]
        np.testing.assert_array_equal(value, mine)
        assert np.asarray(value).dtype == np.asarray(mine).dtype


def test_a_split_of_many_files_reads_as_one(tmp_path):
    corpus = prepared(tmp_path)
    rows = corpus.rows("train")
    folder = epath.Path(tmp_path / "shards")
    folder.mkdir()
    fields = array_record.text_fields(32, 256)
    writer = array_record.SplitWriter(folder, "train", fields, shard_bytes=500)
    packer = Packer(32, corpus.tokenizer.end)
    for document in corpus.tokenizer.encode_batch(texts_of(corpus, "train")):
        packer.add(document)
    for part in (packer.take(), packer.finish()):
        writer.write(part._asdict())
    writer.close()
    array_record.write_metadata(folder, [writer], fields)
    assert len(writer.shard_lengths) > 3
    again = array_record.read_rows(folder, "train")
    assert len(again) == len(rows)
    for i in range(len(rows)):
        np.testing.assert_array_equal(again[i]["tokens"], rows[i]["tokens"])


def test_small_batches_of_documents_give_the_same_rows(tmp_path, monkeypatch):
    corpus = prepared(tmp_path)
    monkeypatch.setattr(corpus_module, "BATCH_CHARACTERS", 50)
    again = prepared(tmp_path, cache=tmp_path / "elsewhere")
    assert again.manifest == corpus.manifest
    np.testing.assert_array_equal(stream(again.rows("train")), stream(corpus.rows("train")))


def test_a_second_call_opens_it_without_reading_text(tmp_path, monkeypatch):
    source = write_texts(tmp_path / "texts")
    first = prepared(tmp_path, source=source, tokenizer="bpe", vocab_size=400)

    def unread(*_):
        raise AssertionError("text was read")

    monkeypatch.setattr(sources, "documents", unread)
    second = prepared(tmp_path, source=source, tokenizer="bpe", vocab_size=400)
    assert second.manifest == first.manifest
    assert second.tokenizer.hash == first.tokenizer.hash
    assert open_corpus(second.folder).manifest == first.manifest


def test_any_change_of_the_description_is_another_corpus(tmp_path):
    source = write_texts(tmp_path / "texts")
    folders = {
        prepared(tmp_path, source=source).folder,
        prepared(tmp_path, source=source, seq_len=33).folder,
        prepared(tmp_path, source=source, validation_fraction=0.4).folder,
        prepared(tmp_path, source=source, tokenizer="bpe", vocab_size=400).folder,
        prepared(tmp_path, source=source, tokenizer="bpe", vocab_size=401).folder,
    }
    (tmp_path / "texts" / "000.txt").write_text("changed")
    assert len(folders | {prepared(tmp_path, source=source).folder}) == 6


def test_a_ready_made_tokenizer_is_kept_with_the_corpus(tmp_path):
    trained = prepared(tmp_path, tokenizer="bpe", vocab_size=400)
    path = tmp_path / "tokenizer.json"
    (trained.folder / "tokenizer.json").copy(path)
    given = prepared(tmp_path, tokenizer=str(path))
    path.unlink()
    assert texts_of(open_corpus(given.folder), "train") == texts_of(trained, "train")


def test_an_error_leaves_nothing_behind(tmp_path):
    source = write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "zz.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        prepared(tmp_path, source=source)
    assert list((tmp_path / "cache").iterdir()) == []


_SLOW = """
import sys, time
from lm.data import DataConfig, prepare, sources
texts = sources.SOURCES["files"].documents
def slow(argument):
    for document in texts(argument):
        yield document
        print("read", flush=True)
        time.sleep(float(sys.argv[3]))
sources.SOURCES["files"] = sources.Source(slow, sources.SOURCES["files"].fingerprint)
prepare(DataConfig(source=sys.argv[1], seq_len=32, validation_fraction=0.3), sys.argv[2])
"""


def start_slow(source, cache, seconds):
    command = [sys.executable, "-c", _SLOW, source, str(cache), str(seconds)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "read\n"
    return process


def test_a_killed_preparation_never_looks_whole_and_is_cleaned_up_by_the_next(tmp_path):
    source, cache = write_texts(tmp_path / "texts"), tmp_path / "cache"
    process = start_slow(source, cache, 60)
    (left,) = cache.iterdir()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ".partial-" in left.name
    with pytest.raises(UserError, match="no prepared corpus"):
        open_corpus(left)
    corpus = prepared(tmp_path, source=source)
    assert list(cache.iterdir()) == [tmp_path / "cache" / corpus.folder.name]


def test_an_interrupted_preparation_cleans_up_after_itself(tmp_path):
    process = start_slow(write_texts(tmp_path / "texts"), tmp_path / "cache", 60)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_preparations_at_once_do_not_harm_each_other(tmp_path):
    source, cache = write_texts(tmp_path / "texts"), tmp_path / "cache"
    slower = start_slow(source, cache, 0.05)
    corpus = prepared(tmp_path, source=source)
    written = stream(corpus.rows("train")).tolist()
    assert slower.communicate(timeout=60)[1] == "" and slower.returncode == 0
    assert [path.name for path in cache.iterdir()] == [corpus.folder.name]
    assert stream(open_corpus(corpus.folder).rows("train")).tolist() == written


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_len": 0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"tokenizer": "morse"},
    ],
)
def test_arguments_out_of_range_are_errors(changes, tmp_path):
    with pytest.raises(UserError):
        prepared(tmp_path, **changes)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_source_without_text_is_an_error(tokenizer, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="has no text"):
        prepared(
            tmp_path,
            source=f"files:{tmp_path}/*.txt",
            tokenizer=tokenizer,
            vocab_size=VOCABULARY[tokenizer],
        )


def test_one_document_is_named_as_one(tmp_path):
    source = write_texts(tmp_path / "texts", number=1)
    with pytest.raises(UserError, match="it has 1 distinct document, and validation"):
        prepared(tmp_path, source=source)


def test_an_empty_split_is_an_error_whose_remedy_works(tmp_path):
    source = write_texts(tmp_path / "texts", number=5)
    with pytest.raises(UserError, match=r"validation split .* is empty: it has 5") as error:
        prepared(tmp_path, source=source, validation_fraction=1e-9)
    least = float(str(error.value).split("between ")[1].split()[0])
    prepared(tmp_path, source=source, validation_fraction=least + 1e-6)
    with pytest.raises(UserError, match=r"train split .* is empty"):
        prepared(tmp_path, source=source, validation_fraction=1 - 1e-9)


def test_a_single_document_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="several files"):
        prepared(tmp_path, source=write_texts(tmp_path / "texts", number=1))


def test_a_train_split_shorter_than_a_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="fewer than a row of seq_len=100000"):
        prepared(tmp_path, seq_len=100_000)


def test_there_are_only_two_splits(tmp_path):
    with pytest.raises(UserError, match="no split 'test'"):
        prepared(tmp_path).rows("test")
