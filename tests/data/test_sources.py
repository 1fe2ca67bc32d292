"""Each source gives the text that it names, whole and in order, and says what is wrong."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import tokenize

import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from lm.data import documents, sources, tfds_source
from lm.errors import UserError
from lm.tasks.records import records

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXT = "Über den Wolken\n" * 200 + "日本\n"


def test_stdlib_is_ten_megabytes_without_tests_or_installed_packages():
    found = list(documents("stdlib"))
    names = [document.name for document in found]
    assert names == sorted(set(names))
    assert sum(len(document.text) for document in found) > 10_000_000
    assert not any("/test/" in f"/{name}" or "site-packages" in name for name in names)
    with tokenize.open(tokenize.__file__) as file:
        assert file.read() == next(d.text for d in found if d.name == "tokenize.py")


def test_each_file_is_a_document_and_the_order_is_that_of_the_paths(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/c/3.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = list(documents(f"files:{tmp_path}/**/*.txt"))
    assert [document.text for document in found] == ["a.txt", "b/2.txt", "b/c/3.txt"]
    assert found[0].name == str(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_read_like_plain_ones_also_in_several_frames(suffix, tmp_path):
    compress = COMPRESS[suffix]
    half = len(TEXT) // 2
    frames = compress(TEXT[:half].encode()) + compress(TEXT[half:].encode())
    (tmp_path / f"text{suffix}").write_bytes(frames)
    assert [document.text for document in documents(f"files:{tmp_path}/*")] == [TEXT]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_endings_of_any_case_are_known(suffix, tmp_path):
    (tmp_path / f"TEXT{suffix.upper()}").write_bytes(COMPRESS[suffix](TEXT.encode()))
    assert [document.text for document in documents(f"files:{tmp_path}/*")] == [TEXT]
    pair = b'{"source": "a", "target": "b"}\n'
    (tmp_path / f"ROWS.JSONL{suffix.upper()}").write_bytes(COMPRESS[suffix](pair))
    (document,) = documents(f"pairs:{tmp_path}/ROWS*")
    assert (document.encoder_text, document.text) == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.CSV", b"text,label\nx,1\n"),
        ("a.Tsv", b"text\tlabel\nx\t1\n"),
        ("a.JsonL", b'{"text": "x", "label": "1"}\n'),
        ("a.CSV.GZ", gzip.compress(b"text,label\nx,1\n", mtime=0)),
        ("a.csv.bz2", bz2.compress(b"text,label\nx,1\n")),
    ],
)
def test_labelled_files_are_known_by_endings_of_any_case(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    (record,) = records(f"files:{tmp_path}/{name}")
    assert record.values == {"text": "x", "label": "1"}


WIDE = {
    "UTF-16": "\ufeffWörter".encode("utf-16-le"),
    "UTF-16 ": "\ufeffWörter".encode("utf-16-be"),
    "UTF-32": "\ufeffWörter".encode("utf-32-le"),
    "UTF-32 ": "\ufeffWörter".encode("utf-32-be"),
    "UTF-16LE": "text,label\nno mark,1\n".encode("utf-16-le"),
    "UTF-16BE": "text,label\nno mark,1\n".encode("utf-16-be"),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("kind", ["files", "pairs", "records"])
def test_text_in_units_of_two_bytes_is_named_as_such(kind, name, tmp_path):
    (tmp_path / "text.csv").write_bytes(WIDE[name])
    encoding = name.strip()
    line = f"text.csv is {encoding}, .* convert it .iconv -f {encoding} -t UTF-8"
    with pytest.raises(UserError, match=line):
        list(
            records(f"files:{tmp_path}/*")
            if kind == "records"
            else documents(f"{kind}:{tmp_path}/*")
        )


@pytest.mark.parametrize(
    "content", [b"", b"a", b"a\0b c d e f g", "größer".encode(), b"\xef\xbb\xbfa"]
)
def test_utf_8_is_not_taken_for_anything_else(content, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    (document,) = documents(f"files:{tmp_path}/*")
    assert document.text == content.decode("utf-8-sig")


def test_a_damaged_middle_of_a_compressed_file_is_an_error(tmp_path):
    data = bytearray(gzip.compress(bytes(range(256)) * 20))
    data[20:40] = bytes(20)
    (tmp_path / "text.gz").write_bytes(data)
    with pytest.raises(UserError, match="cannot be decompressed"):
        list(documents(f"files:{tmp_path}/*"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_compressed_file_is_an_error(suffix, tmp_path):
    (tmp_path / f"text{suffix}").write_bytes(COMPRESS[suffix](TEXT.encode())[:-6])
    with pytest.raises(UserError, match="cannot be decompressed"):
        list(documents(f"files:{tmp_path}/*"))


def test_without_zstandard_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "text.zst").write_bytes(COMPRESS[".zst"](b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        list(documents(f"files:{tmp_path}/*"))


def test_a_byte_that_is_not_utf8_is_named_with_its_file_and_offset(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9s".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt is not UTF-8: byte 0xe9 at offset 3"):
        list(documents(f"files:{tmp_path}/*.txt"))


def test_a_byte_order_mark_is_dropped_and_newlines_are_kept(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert next(documents(f"files:{tmp_path}/*")).text == "a\r\nb"


@pytest.mark.parametrize(
    "source", ["", "stdlib:3", "files", "files:", "tfds:", "http://x", "files:/nothing/here/*"]
)
def test_a_source_that_names_nothing_is_an_error(source):
    with pytest.raises(UserError):
        list(documents(source))
    with pytest.raises(UserError):
        sources.fingerprint(source)


def test_the_fingerprint_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(0, 0))
    first = sources.fingerprint(f"files:{tmp_path}/*")
    assert sources.fingerprint(f"files:{tmp_path}/*") == first
    os.utime(path, ns=(0, 1))
    assert sources.fingerprint(f"files:{tmp_path}/*") != first


def _store(folder, splits, features):
    """A prepared TFDS dataset, as `tfds build` leaves it."""
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        path = folder / f"{folder.parent.name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for example in examples:
            writer.write(features.serialize_example(example))
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=folder.parent.name,
            split=split,
            filetype_suffix="array_record",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, check_data=False
    )


def _features(*names):
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


def test_a_tfds_dataset_is_read_and_its_test_split_held_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    splits = {"train": [{"text": "a"}, {"text": "ü"}], "test": [{"text": "日"}]}
    _store(tmp_path / "toy_corpus" / "1.0.0", splits, _features("text"))
    assert [document[:3] for document in documents("tfds:toy_corpus")] == [
        ("validation/0", "日", "validation"),
        ("train/0", "a", "train"),
        ("train/1", "ü", "train"),
    ]


def test_a_tfds_dataset_with_only_train_leaves_the_split_to_us(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    _store(tmp_path / "toy_train" / "1.0.0", {"train": [{"book": "a"}]}, _features("book"))
    assert [document.split for document in documents("tfds:toy_train")] == [None]


def test_the_text_is_the_feature_of_that_name_or_the_only_one():
    assert tfds_source.text_feature("x", _features("title", "text")) == "text"
    assert tfds_source.text_feature("x", _features("url", "content")) == "content"
    assert tfds_source.text_feature("x", _features("book_text")) == "book_text"
    with pytest.raises(UserError, match="2 features of text"):
        tfds_source.text_feature("x", _features("question", "answer"))


def test_an_unknown_tfds_dataset_is_one_line():
    with pytest.raises(UserError, match="tfds:no_such_corpus cannot be opened") as error:
        list(documents("tfds:no_such_corpus"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["kaggle:titanic", "huggingface:squad", "any_one:news/small"])
def test_a_tfds_dataset_that_would_bring_code_of_its_own_is_refused(name, monkeypatch):
    monkeypatch.setattr(tfds, "builder", None)
    with pytest.raises(UserError, match="bring code of their own, which is not run"):
        list(documents(f"tfds:{name}"))


def test_a_tfds_dataset_that_cannot_be_fetched_is_one_line_with_a_remedy(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host\nand many more lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(UserError, match=r"no route to host.*TFDS_DATA_DIR") as error:
        list(documents("tfds:lm1b"))
    assert "\n" not in str(error.value)


def test_builders_of_public_corpora_open_without_tensorflow():
    code = (
        "import sys\n"
        "from lm.data.tfds_source import load_builder, text_feature\n"
        "for name in ('lm1b', 'wiki40b/en', 'pg19', 'c4/en'):\n"
        "    print(text_feature(name, load_builder(name).info.features))\n"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["text", "text", "book_text", "text", "False"], done.stderr
