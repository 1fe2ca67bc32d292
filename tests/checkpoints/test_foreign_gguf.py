"""A GGUF file from elsewhere with odd metadata is refused in one line."""

import math
import struct

import numpy as np
import pytest

pytest.importorskip("gguf")

import gguf

from configs import default
from lm.checkpoints.hf import open_checkpoint
from lm.errors import UserError


def metadata(file, **odd):
    """A GGUF file of a Llama with other values under these keys."""
    writer = gguf.GGUFWriter(file, "llama")
    plain = {"llama.block_count": 2, "llama.embedding_length": 32, "llama.context_length": 64}
    plain |= {"llama.feed_forward_length": 48, "llama.attention.head_count": 4}
    for key, value in (plain | odd).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint64(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((5, 32), np.float32))
    writer.add_tensor("blk.1.attn_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


TOKENS = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list("abcde")}
TOKENS |= {"tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0, -4.0], "tokenizer.ggml.eos_token_id": 2}


@pytest.mark.parametrize(
    "odd",
    [
        {"llama.block_count": "two"},
        {"llama.block_count": 1 << 62},
        {"llama.embedding_length": 0},
        {"llama.attention.head_count": [4, 4]},
        {"llama.attention.head_count": 0},
        {"llama.attention.layer_norm_rms_epsilon": "small"},
        {"llama.attention.layer_norm_rms_epsilon": math.nan},
        {"llama.rope.freq_base": -1.0},
        {"llama.rope.scaling.type": [3]},
        {"split.count": "three"},
        TOKENS | {"tokenizer.ggml.model": [1]},
        TOKENS | {"tokenizer.ggml.tokens": [1, 2]},
        TOKENS | {"tokenizer.ggml.tokens": "abc"},
        TOKENS | {"tokenizer.ggml.scores": [1.0]},
        TOKENS | {"tokenizer.ggml.scores": ["a"] * 5},
        TOKENS | {"tokenizer.ggml.token_type": "x"},
        TOKENS | {"tokenizer.ggml.eos_token_id": "2"},
        TOKENS | {"tokenizer.ggml.unknown_token_id": 77},
        TOKENS | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": [3]},
        TOKENS | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": [3]},
        TOKENS | {"tokenizer.chat_template": 5},
    ],
    ids=lambda odd: str(list(odd.items())[-1])[:60],
)
def test_odd_metadata_of_a_gguf_file_is_one_line(odd, tmp_path, cache):
    config = default.get_config()
    config.cache_dir = str(cache)
    with pytest.raises(UserError) as error:
        open_checkpoint(f"hf:{metadata(tmp_path / 'x.gguf', **odd)}").with_model(config)
    assert "x.gguf" in str(error.value) and "\n" not in str(error.value)


def test_the_same_file_with_plain_metadata_is_read(tmp_path, cache):
    config = default.get_config()
    config.cache_dir = str(cache)
    plain = TOKENS | {"tokenizer.ggml.token_type": [1, 1, 3, 1, 1]}
    found = open_checkpoint(f"hf:{metadata(tmp_path / 'x.gguf', **plain)}").with_model(config)
    assert (found.model.num_layers, found.data.vocab_size) == (2, 5)


@pytest.mark.parametrize("kind", [0, 8], ids=["numbers", "texts"])
def test_an_array_that_is_said_to_be_longer_than_its_file_is_refused_before_it_fills_memory(
    kind, tmp_path
):
    name = struct.pack("<Q", 3) + b"odd"
    array = struct.pack("<IIQ", 9, kind, 1 << 60)
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + name + array + bytes(64))
    with pytest.raises(UserError, match=r"x.gguf is truncated or damaged \(it says more"):
        open_checkpoint(f"hf:{file}")


def test_metadata_of_more_values_than_any_file_has_are_refused(tmp_path, monkeypatch):
    file = metadata(tmp_path / "x.gguf", **{"odd": list(range(2000))})
    assert open_checkpoint(f"hf:{file}").hf_config["num_hidden_layers"] == 2
    monkeypatch.setattr("lm.checkpoints.hf.gguf._MOST_VALUES", 1000)
    with pytest.raises(UserError, match="more than 1,000 values"):
        open_checkpoint(f"hf:{file}")
