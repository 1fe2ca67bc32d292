"""The scales of a LoRA of peft are those that its alpha_pattern gives to names."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
from peft.utils.other import get_pattern_key

from lm.checkpoints.hf import FAMILIES
from lm.checkpoints.peft import load_adapter
from lm.checkpoints.peft.lora import _alpha
from lm.finetuning import combine
from lm.training.build_model import build_model
from tests.checkpoints.hf_checkpoints import V, batch_of, load, save, tokens


def test_keys_of_alpha_pattern_match_names_as_pefts_do():
    patterns = [
        {"[qv]_proj": 32},
        {"q_proj": 1, ".*_proj": 2},
        {".*_proj": 2, "q_proj": 1},
        {"proj": 3},
        {r"layers\.1\.self_attn\.[kv]_proj": 4, r"model.layers.\d.mlp.*": 5},
        {"q_proj|v_proj": 6},
        {"1.self_attn.q_proj": 7, "^model": 8},
        {},
    ]
    names = [f"model.layers.{n}.{part}" for n in (0, 1, 11) for part in ("mlp.up_proj", "q_proj")]
    names += [f"model.layers.{n}.self_attn.{x}_proj" for n in (0, 1, 11) for x in "qkvo"]
    for pattern in patterns:
        for name in names:
            expected = pattern.get(get_pattern_key(pattern.keys(), name), 8)
            theirs = {"lora_alpha": 8, "alpha_pattern": pattern}
            assert _alpha(theirs, name) == expected, (pattern, name)


def test_an_alpha_by_a_regular_expression_computes_what_peft_computes(tmp_path):
    folder, model = save("llama", tmp_path / "base")
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    options |= {"alpha_pattern": {"[qv]_proj": 32}}
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    base = load(folder)
    config, added = load_adapter(tmp_path / "adapter", base.config, FAMILIES["llama"])
    assert config.finetuning.alpha == 32
    model, params = build_model(config, V), combine(added, base.params)
    actual = model.apply({"params": params}, batch_of(tokens()), method="log_probs")
    with torch.no_grad():
        logits = wrapped(torch.as_tensor(tokens().astype(np.int64))).logits
    expected = torch.log_softmax(logits, -1).numpy()
    # Far from the base: what rounds is as large as the logits.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
