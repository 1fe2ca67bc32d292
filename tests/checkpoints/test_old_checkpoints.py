"""Checkpoints as the first versions of the library wrote them, and those that lack their heads."""

import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file, save_file

from configs import default
from lm.checkpoints.hf import FAMILIES, open_checkpoint, with_checkpoint_model
from lm.checkpoints.hf.tensor_mapping import param_sources
from lm.checkpoints.pretrained import open_pretrained
from lm.config import override
from lm.errors import UserError
from tests.checkpoints.hf_checkpoints import load, save

GAMMA = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def first_name(name: str) -> str:
    """As TensorFlow called the parameters of a norm."""
    for now, before in GAMMA.items():
        name = name.replace(now, before)
    return name


def rewritten(folder: pathlib.Path, change, *, pickled: bool = False) -> pathlib.Path:
    """The same folder with other names of tensors; None leaves one out."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    kept = {new: tensor for name, tensor in tensors.items() if (new := change(name))}
    if pickled:
        state = {name: torch.as_tensor(tensor) for name, tensor in kept.items()}
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def settings_changed(folder: pathlib.Path, *without: str, **keys) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in without}))


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "electra", "distilbert"])
def test_norms_with_gamma_and_beta_are_read_to_the_bit(name, pickled, tmp_path):
    folder, model = save(name, tmp_path)
    rewritten(folder, first_name, pickled=pickled)
    checkpoint = open_checkpoint(f"hf:{folder}")
    assert sum("LayerNorm" in tensor for tensor in checkpoint.tensors) > 1
    for tensor, value in model.state_dict().items():
        tensor = tensor.removeprefix(checkpoint.family.prefix)
        if "LayerNorm" in tensor:
            np.testing.assert_array_equal(checkpoint.tensors[tensor][:], value.numpy())


def test_the_hubs_first_bert_has_every_parameter(tmp_path):
    folder, _ = save("bert", tmp_path)
    ours = load(rewritten(folder, first_name, pickled=True))
    assert not ours.fresh and "without" not in ours.origin


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "bert, tanh gelu, untied"])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_heads_bias_has_either_of_two_names(name, kept, tmp_path):
    folder, model = save(name, tmp_path)
    family = FAMILIES[name.split(",")[0]]
    bias = model.get_output_embeddings().bias.detach().numpy()
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if k not in family.aliases}
    save_file(tensors | {family.aliases[kept]: bias}, folder / "model.safetensors")
    checkpoint = open_checkpoint(f"hf:{folder}")
    for twin in family.aliases:
        np.testing.assert_array_equal(checkpoint.tensors[twin][:], bias)
    config = with_checkpoint_model(override(default.get_config(), {"init_from": f"hf:{folder}"}))
    checkpoint.check_has_head({"head/bias": bias.shape}, config)


@pytest.mark.parametrize(
    ("name", "without", "line"),
    [
        ("bert", (), '"model_type": "bert"'),  # by its architectures
        ("roberta", (), '"model_type": "roberta"'),
        ("bert", ("architectures",), '"model_type": "bert"'),  # by its tensors
        ("albert", ("architectures",), '"model_type": "albert"'),
        ("llama", ("architectures",), 'one of llama, qwen2, bart, add the line "model_type": "ll'),
    ],
)
def test_a_folder_without_a_model_type_is_told_which_line_to_add(name, without, line, tmp_path):
    folder, _ = save(name, tmp_path)
    settings_changed(folder, "model_type", *without)
    with pytest.raises(UserError) as error:
        open_checkpoint(f"hf:{folder}")
    assert "config.json names no model_type" in str(error.value) and line in str(error.value)


HEADS = {
    "llama": ("lm_head.weight", "lm_head.weight, which is head/table here"),
    "bert": ("cls.predictions", "lacks cls.predictions"),
    "roberta": ("lm_head.dense", "lacks lm_head.dense"),
    "distilbert": ("vocab_layer_norm.weight", "which is transform/norm/scale here"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_checkpoint_without_its_head_is_said_to_answer_at_random(name, tmp_path):
    folder, _ = save(name, tmp_path)
    missing, line = HEADS[name]
    rewritten(folder, lambda tensor: None if tensor.startswith(missing) else tensor)
    config = with_checkpoint_model(override(default.get_config(), {"init_from": f"hf:{folder}"}))
    checkpoint = open_checkpoint(config.init_from)
    names = param_sources(checkpoint.family.mappings(config), config.model.num_layers)
    top = "head/table" if name == "llama" else "transform/"
    shapes = {path: () for path in names if path.startswith(top)}
    with pytest.raises(UserError, match=line) as error:
        checkpoint.check_has_head(shapes, config)
    assert "it would answer at random; train it first" in str(error.value)


@pytest.fixture
def headless(tmp_path):
    """The config of a Llama whose table of words for the head is missing."""
    folder, _ = save("llama", tmp_path)
    rewritten(folder, lambda tensor: None if tensor == "lm_head.weight" else tensor)
    own = {"init_from": f"hf:{folder}", "data.tokenizer": "characters", "data.seq_len": 8}
    return with_checkpoint_model(override(default.get_config(), own | {"mesh.data": 1}))


def test_eval_and_generate_refuse_a_random_head(headless):
    with pytest.raises(UserError, match=r"lacks lm_head.weight, which is head/table here"):
        open_pretrained(headless)
    assert "stack" in open_pretrained(headless, headless=True).params
