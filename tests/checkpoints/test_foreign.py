"""A checkpoint from elsewhere whose files lie, are damaged or mean harm is refused in one line."""

import collections
import io
import json
import resource
import struct
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import default
from lm.checkpoints.hf import FAMILIES
from lm.checkpoints.hf.checkpoint import Checkpoint
from lm.checkpoints.hf.hf_config import KINDS
from lm.checkpoints.hf.tensors import open_tensors
from lm.data.files import read_json
from lm.errors import UserError
from lm.training.validate import check

# What a config.json of every family is read from, of small sizes.
SMALL = {
    "vocab_size": 256,
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("hidden_size", "dim", "n_embd", "d_model", "embedding_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
ODD = [
    *("3", "", "gelu", [], [4], [[1]], {}, {"a": 1}, None, True, False, -1, 0, -7, 0.5, 1e400),
    *(10**16, 2**63, 10**400, float("nan"), -0.0, {"rope_type": 3}, {"rope_theta": "x"}),
    {"rope_type": ["default"], "rope_theta": [1]},
]


def folder_of(theirs, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    return tmp_path


def adopted(family, theirs, folder):
    config = default.get_config()
    kinds = {"encoder": "masked", "encoder_decoder": "seq2seq"}
    config.objective = kinds.get(FAMILIES[family].fixed["model.architecture"], "causal")
    config.data.source = "docstrings" if config.objective == "seq2seq" else "stdlib"
    config = Checkpoint(folder, FAMILIES[family], theirs, _Whole()).with_model(config)
    config.data.tokenizer, config.data.seq_len = "bytes", 8
    check(config)
    return config


class _Whole(dict):
    """Tensors of every name."""

    def __contains__(self, name):
        return True


class _Recorded(collections.UserDict):
    """Knows which of its keys were asked for."""

    def __init__(self, values):
        self.asked = set()
        super().__init__(values)

    def get(self, key, default=None):
        self.asked.add(key)
        return self.data.get(key, default)


def read_keys(family):
    """The keys of config.json that a family reads, besides those that may have one value only."""
    record = _Recorded(SMALL)
    FAMILIES[family].config_from_hf(record, "config.json")
    FAMILIES[family].special_tokens(record)
    return record.asked - FAMILIES[family].required.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_is_read_has_a_kind(family):
    assert read_keys(family) <= KINDS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_of_another_kind_under_any_key_is_one_line(family, tmp_path):
    theirs = {k: v for k, v in SMALL.items() if FAMILIES[family].required.get(k, v) == v}
    adopted(family, theirs, tmp_path)
    refused = 0
    for key in sorted({*read_keys(family), *FAMILIES[family].required, "vocab_size", "num_labels"}):
        for value in ODD:
            try:
                adopted(family, theirs | {key: value}, tmp_path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 100


def test_more_labels_than_any_model_has_are_named_before_they_are_counted(tmp_path):
    with pytest.raises(UserError, match="has num_labels = 1000000000, which is not a whole"):
        adopted("gpt2", SMALL | {"num_labels": 10**9}, tmp_path)


def test_more_layers_than_there_are_tensors_are_named_before_they_are_built(tmp_path):
    tensors = {f"h.{i}.ln_1.weight": np.zeros(4) for i in range(2)}
    checkpoint = Checkpoint(tmp_path, FAMILIES["gpt2"], SMALL | {"n_layer": 9999}, tensors)
    with pytest.raises(UserError, match=r"to have 9999 layers, .* such as h.9998.ln_1.weight"):
        checkpoint.with_model(default.get_config())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[" * 200_000, "config.json is not JSON"),
        (b'{"a": ' * 200_000, "config.json is not JSON"),
        (b"\xff\xfe{\x00}\x00", r"config.json is not UTF-8 \(byte 0xff at 0\)"),
        (b"[1]", "config.json is no JSON object"),
        (b'"text"', "config.json is no JSON object"),
    ],
)
def test_a_json_file_that_is_deep_or_no_text_is_one_line(content, line, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/hostname",
        "../model.safetensors",
        "a/../../b",
        "..",
        "",
        "C:\\x",
        "..\\x",
        5,
        None,
        ["a"],
    ],
)
def test_an_index_of_shards_does_not_leave_its_folder(shard, tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    folder = tmp_path / "inner"
    folder.mkdir()
    index = {"weight_map": {"x": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"leads out of its folder|is no index of shards"):
        open_tensors(folder)


def test_shards_in_folders_below_and_behind_links_are_read(tmp_path):
    # As the hub's client has it: names that are links to files elsewhere.
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "blob")
    folder = tmp_path / "snapshot"
    (folder / "part").mkdir(parents=True)
    (folder / "part/1.safetensors").symlink_to(tmp_path / "blob")
    index = {"weight_map": {"x": "part/1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_tensors(folder)["x"][:] == 1


def archive_of(folder, content, compression=zipfile.ZIP_STORED, **members):
    """A folder with a pytorch_model.bin of this pickle."""
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for name, data in members.items():
            archive.writestr(f"archive/data/{name}", data)
    return folder


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    archive_of(tmp_path, bytes(1 << 26), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 1 << 17
    with pytest.raises(UserError, match=r"is damaged, .*its members are compressed"):
        open_tensors(tmp_path)


def test_a_pickle_of_a_few_bytes_takes_no_memory_for_what_it_says_it_remembers(tmp_path):
    pytest.importorskip("torch")
    # {} put into the place 2^26 of the memo
    content = b"\x80\x02}r" + struct.pack("<I", 1 << 26) + b"."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_tensors(archive_of(tmp_path, content)) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def tensor_of(shape, strides, storage=b"FloatStorage", numbers=4):
    """The pickle of {"weight": a tensor of a storage of so many numbers}."""

    def text(word):
        return b"X" + struct.pack("<I", len(word)) + word

    def whole(number):
        return b"\x8a\x08" + struct.pack("<q", number)

    def tuple_of(values):
        return b"(" + b"".join(map(whole, values)) + b"t"

    marked = text(b"storage") + b"ctorch\n" + storage + b"\n" + text(b"0") + text(b"cpu")
    marked = b"(" + marked + whole(numbers) + b"tQ"
    tensor = marked + whole(0) + tuple_of(shape) + tuple_of(strides) + b"\x89"
    tensor += b"ccollections\nOrderedDict\n)R"
    return (
        b"\x80\x02}" + text(b"weight") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + b"tRs."
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (tensor_of((5,), (1,)), "resize storage"),
        (tensor_of((4,), (-1,)), "size calculation overflowed"),
        (tensor_of((2, 2), (2,)), "unequal size"),
        (tensor_of((4,), (1,), storage=b"SomeStorage"), "asks for torch.SomeStorage"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"}.", "holds more than weights"),  # of 2^64 bytes
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".", "holds more than weights"),
        (b"\x80\x02" + b"]" * 50 + b".", "holds more than weights"),
        (b"", "holds more than weights"),
        (b"\x80\x02K\x05.", "holds more than weights"),
    ],
)
def test_a_pickle_that_lies_about_sizes_is_one_line(content, line, tmp_path):
    pytest.importorskip("torch")
    archive_of(tmp_path, content, **{"0": bytes(16)})
    with pytest.raises(UserError, match=line) as error:
        open_tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_a_pickled_tensor_larger_than_its_file_takes_no_memory(tmp_path):
    """One number over and over again, of a shape that no model has."""
    pytest.importorskip("torch")
    content = tensor_of((1 << 20, 1 << 20), (0, 0))
    tensor = open_tensors(archive_of(tmp_path, content, **{"0": bytes(16)}))["weight"]
    assert tensor.shape == (1 << 20, 1 << 20)
    assert tensor[(slice(0, 1), slice(0, 2))].shape == (1, 2)


def test_a_tensor_is_read_from_such_a_pickle(tmp_path):
    pytest.importorskip("torch")
    numbers = np.arange(4, dtype=np.float32)
    content = tensor_of((2, 2), (1, 2))
    tensor = open_tensors(archive_of(tmp_path, content, **{"0": numbers.tobytes()}))["weight"]
    np.testing.assert_array_equal(tensor[(slice(None),) * 2], numbers.reshape(2, 2).T)


def safetensors_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[" * 10_000,
        b"\xff\xfe",
        {"x": ENTRY | {"shape": [3]}},
        {"x": ENTRY | {"shape": [-1]}},
        {"x": ENTRY | {"shape": "2"}},
        {"x": ENTRY | {"data_offsets": [0, 1 << 60]}},
        {"x": ENTRY | {"dtype": "Q5"}},
        {"x": ENTRY, "y": ENTRY},
        {"x": None},
    ],
)
def test_a_damaged_header_of_safetensors_is_one_line(header, tmp_path):
    safetensors_of(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(UserError, match=r"model.safetensors is truncated or damaged") as error:
        open_tensors(tmp_path)
    assert "\n" not in str(error.value)


def test_a_header_that_says_it_is_huge_is_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(UserError, match="is truncated or damaged"):
        open_tensors(tmp_path)


def test_numbers_of_a_type_that_numpy_lacks_are_named(tmp_path):
    header = {"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    safetensors_of(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(UserError, match="x is stored as F8_E4M3, which cannot be read"):
        open_tensors(tmp_path)["x"][(slice(0, 8),)]


def test_a_stream_of_a_pickle_is_no_archive(tmp_path):
    pytest.importorskip("torch")
    buffer = io.BytesIO(b"\x80\x02}r" + struct.pack("<I", 1 << 26) + b".")
    (tmp_path / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is damaged, or holds more than weights"):
        open_tensors(tmp_path)


def test_a_pickle_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'torch>=2\.6', or give the model's"):
        open_tensors(archive_of(tmp_path, b""))
