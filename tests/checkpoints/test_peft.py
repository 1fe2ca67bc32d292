"""A LoRA of ours is one of peft's, and the other way round: same outputs, same gradients."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft
import torch
from safetensors.numpy import load_file, save_file

from configs import default
from lm.checkpoints.hf import FAMILIES, open_checkpoint
from lm.checkpoints.peft import load_adapter, save_adapter
from lm.config import override
from lm.errors import UserError
from lm.finetuning import combine, finetuning_config, partition
from lm.training.build_model import build_model
from tests.checkpoints.hf_checkpoints import V, batch_of, load, save, tokens

CLOSE = {"rtol": 0, "atol": 1e-5}
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}
OURS = ("query", "value", "in")


def tuned(folder, method, **settings):
    """Our model of a folder with additions that matter, and its parameters."""
    tune = {"finetuning.num_virtual_tokens": 3} if method in ("prompt", "prefix") else {}
    if "lora" in method:
        tune = {"finetuning.rank": 4, "finetuning.alpha": 6.0, "finetuning.target_modules": OURS}
    base = load(folder, **{"finetuning.method": method}, **tune, **settings)
    keys = iter(jax.random.split(jax.random.key(7), 99))
    added = ("lora", "ia3", "prompt", "prefix_key", "prefix_value")
    flat = {
        path: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape)
        if path[-2:-1] and path[-2] in added
        else leaf
        for path, leaf in flatten_dict(base.params).items()
    }
    base.params = unflatten_dict(flat)
    return base


def logits_of(model, inputs):
    ids = torch.as_tensor(np.asarray(inputs, np.int64))
    both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out = model(input_ids=ids, **both)
    # Learned words stand before the text.
    return torch.log_softmax(out.logits, -1).numpy()[:, -inputs.shape[1] :]


@pytest.mark.parametrize(
    ("name", "method", "scan"),
    [
        pytest.param("bert", "lora", False, marks=pytest.mark.slow),
        ("llama", "rslora", True),
        pytest.param("gpt2", "lora", False, marks=pytest.mark.slow),
    ],
)
def test_peft_loads_what_is_written_and_computes_the_same(name, method, scan, tmp_path):
    folder, model = save(name, tmp_path / "base")
    ours = tuned(folder, method, **{"model.scan": scan})
    save_adapter(tmp_path / "adapter", ours.config, ours.params, FAMILIES[name])
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    inputs = tokens()
    actual = ours.apply(batch_of(inputs), "log_probs")
    np.testing.assert_allclose(actual, logits_of(theirs, inputs), **CLOSE)
    # And back: the joint matrices of GPT-2 come back with the ranks of all their parts.
    if name != "gpt2":
        config, added = load_adapter(tmp_path / "adapter", ours.config, FAMILIES[name])
        assert config.finetuning.method == method and config.finetuning.rank == 4
        trained, _ = partition(ours.params, finetuning_config(ours.config).frozen_layers)
        jax.tree.map(np.testing.assert_array_equal, added, trained)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "llama")), "gpt2"]
)
def test_what_peft_writes_computes_the_same_here_with_the_same_gradients(name, tmp_path):
    folder, model = save(name, tmp_path / "base")
    options = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[name]}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options, init_lora_weights=False)).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    base = load(folder)
    family = FAMILIES[name]
    config, added = load_adapter(tmp_path / "adapter", base.config, family)
    tuned = build_model(config, V)
    inputs = tokens()
    batch = batch_of(inputs)

    def loss(added):
        params = combine(added, base.params)
        return jnp.sum(tuned.apply({"params": params}, batch, method="negative_log_likelihood"))

    actual = tuned.apply({"params": combine(added, base.params)}, batch, method="log_probs")
    np.testing.assert_allclose(actual, logits_of(wrapped, inputs), **CLOSE)
    out = wrapped(input_ids=torch.as_tensor(inputs.astype(np.int64))).logits
    targets = torch.as_tensor(np.asarray(batch.targets, np.int64))
    torch.nn.functional.cross_entropy(
        out.reshape(-1, V), targets.reshape(-1), reduction="sum"
    ).backward()
    gradient, compared = flatten_dict(jax.grad(loss)(added)), 0
    for key, parameter in wrapped.named_parameters():
        if "lora_" not in key:
            continue
        expected = parameter.grad.numpy().T
        ours = _ours(gradient, key, name)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(ours / scale, expected / scale, **CLOSE)
        compared += 1
    assert compared == 2 * 2 * len(TARGETS[name])


def _ours(gradient, key, name):
    """Our gradient of one of peft's parameters; a joint A has the sum of its parts'."""
    layer = f"layer_{next(part for part in key.split('.') if part.isdigit())}"
    places = {
        "query": ["attention/query"],
        "q_proj": ["attention/query"],
        "value": ["attention/value"],
        "v_proj": ["attention/value"],
        "intermediate.dense": ["feed_forward/in"],
        "down_proj": ["feed_forward/out"],
        "c_fc": ["feed_forward/in"],
        "c_attn": ["attention/query", "attention/key", "attention/value"],
    }
    place = next(places[target] for target in TARGETS[name] if f".{target}." in key)
    kind = "a_kernel" if "lora_A" in key else "b_kernel"
    found = [gradient[("stack", layer, *p.split("/"), "lora", kind)] for p in place]
    return sum(found) if kind == "a_kernel" else np.concatenate(found, axis=1)


ADAPTERS = [
    ("llama", "ia3"),
    ("gpt2", "prompt"),
    ("llama", "prefix"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("gpt2", "ia3"), ("t5", "ia3"), ("bert", "ia3"), ("qwen2", "prompt"))
    ),
]


@pytest.mark.parametrize(("name", "method"), ADAPTERS)
def test_scales_words_and_prefixes_travel_to_peft_and_back(name, method, tmp_path):
    folder, model = save(name, tmp_path / "base")
    ours = tuned(folder, method)
    save_adapter(tmp_path / "adapter", ours.config, ours.params, FAMILIES[name])
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    inputs, both = tokens(), name == "t5"
    actual = ours.apply(batch_of(inputs, memory=both), "log_probs")
    np.testing.assert_allclose(actual, logits_of(theirs, inputs), **CLOSE)
    config, added = load_adapter(tmp_path / "adapter", ours.config, FAMILIES[name])
    assert config.finetuning.method == method
    trained, _ = partition(ours.params, finetuning_config(ours.config).frozen_layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), added, trained)


SCALES = {"gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]), "t5": (["k", "v", "wo"], ["wo"])}
WRITTEN = {
    ("gpt2", "ia3"): lambda: peft.IA3Config(
        target_modules=SCALES["gpt2"][0],
        feedforward_modules=SCALES["gpt2"][1],
        init_ia3_weights=False,
    ),
    ("gpt2", "prompt"): lambda: peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3
    ),
    ("llama", "prefix"): lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3
    ),
    ("t5", "ia3"): lambda: peft.IA3Config(
        target_modules=SCALES["t5"][0], feedforward_modules=SCALES["t5"][1], init_ia3_weights=False
    ),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [case if case[0] != "t5" else pytest.param(*case, marks=pytest.mark.slow) for case in WRITTEN],
)
def test_scales_words_and_prefixes_of_peft_compute_the_same_here(name, method, tmp_path):
    folder, model = save(name, tmp_path / "base")
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, WRITTEN[name, method]()).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    base = load(folder)
    config, added = load_adapter(tmp_path / "adapter", base.config, FAMILIES[name])
    assert config.finetuning.method == method
    model, params = build_model(config, V), combine(added, base.params)
    inputs = tokens()
    batch = batch_of(inputs, memory=name == "t5")
    actual = model.apply({"params": params}, batch, method="log_probs")
    np.testing.assert_allclose(actual, logits_of(wrapped, inputs), **CLOSE)


DIFFERENT = {
    ("gpt2", "prefix"): "only decoders with rotary positions exchange prefixes",
    ("t5", "prompt"): "only decoders exchange prompts",
}


@pytest.mark.parametrize(("name", "method"), DIFFERENT)
def test_what_peft_places_differently_is_refused(name, method, tmp_path):
    base = load(save(name, tmp_path / "base")[0])
    base.config.finetuning.method = method
    with pytest.raises(UserError, match=DIFFERENT[name, method]):
        save_adapter(tmp_path / "adapter", base.config, base.params, FAMILIES[name])


def test_what_peft_has_and_we_have_not_is_refused(tmp_path):
    folder, model = save("bert", tmp_path / "base")
    options = {"r": 3, "target_modules": ["query"], "use_dora": True}
    peft.get_peft_model(model, peft.LoraConfig(**options)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="has use_dora True; only False is read"):
        load_adapter(tmp_path / "adapter", load(folder).config, FAMILIES["bert"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes what peft has of a small Llama; gives its folder, and a base's config."""
    base, model = save("llama", tmp_path_factory.mktemp("base"))

    def write(folder, options, **knobs):
        given = copy.deepcopy(model)
        peft.get_peft_model(given, options).save_pretrained(folder)
        config = override(default.get_config(), knobs)
        return folder, open_checkpoint(f"hf:{base}").with_model(config)

    return write


LORA = {"r": 3, "target_modules": ["q_proj"]}
UNREAD = {
    "biases of B": (peft.LoraConfig(**LORA, lora_bias=True), "has lora_bias True; only False"),
    "what was taken off the base": (
        peft.LoraConfig(**LORA, init_lora_weights="pissa"),
        "it began with 'pissa', which changes the base; save it from peft with path_initial",
    ),
    "one scanned layer": (
        peft.LoraConfig(**LORA, layers_to_transform=[1]),
        r"layers.1.self_attn.q_proj.lora_A.weight, which this llama cannot hold",
    ),
    "an activated adapter": (
        peft.LoraConfig(**LORA, task_type="CAUSAL_LM", alora_invocation_tokens=[3]),
        r"alora_invocation_tokens '\[3\]', which is not known here",
    ),
    "scales of the other side": (
        peft.IA3Config(target_modules=["down_proj"], feedforward_modules=[]),
        r"it scales what model.layers.0.mlp.down_proj gives, and here that is what it reads",
    ),
    "scales of the other side of keys": (
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=["k_proj"]),
        r"it scales what model.layers.0.self_attn.k_proj reads, and here",
    ),
    "scales of one scanned layer": (
        peft.IA3Config(target_modules=r".*0.self_attn.v_proj", feedforward_modules=[]),
        r"layers.0.self_attn.v_proj.ia3_l, which this llama cannot hold",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_nothing_that_peft_wrote_is_dropped_silently(name, written, tmp_path):
    options, message = UNREAD[name]
    folder, config = written(tmp_path, options, **{"model.scan": True})
    with pytest.raises(UserError, match=message):
        load_adapter(folder, config, FAMILIES["llama"])


def _edited(folder, **changes):
    settings = json.loads((folder / "adapter_config.json").read_text()) | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(kept))


def _lost(folder, ending):
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.endswith(ending)}, path)


DAMAGE = {
    "has alora_invocation_tokens .*not known here": lambda f: _edited(
        f, alora_invocation_tokens=[5, 6]
    ),
    "has layer_replication .*not known here": lambda f: _edited(f, layer_replication=[[0, 2]]),
    "has some_later_setting '0.5', which is": lambda f: _edited(f, some_later_setting=0.5),
    "has '.q_proj', which is no regular expression": lambda f: _edited(
        f, alpha_pattern={"(q_proj": 3}
    ),
    "is damaged, or no adapter of this llama .*float": lambda f: _edited(f, lora_alpha=[1]),
    "is damaged, or no adapter of this llama .*items": lambda f: _edited(f, alpha_pattern=[1]),
    "has peft_type .'LORA'.; only": lambda f: _edited(f, peft_type=["LORA"]),
    "has no adapter_model.safetensors": lambda f: (f / "adapter_model.safetensors").unlink(),
    "adapter_config.json is not JSON": lambda f: (f / "adapter_config.json").write_text("{"),
    "is not JSON .nested too deep": lambda f: (f / "adapter_config.json").write_text("[" * 10**5),
    "adapter_config.json is not UTF-8": lambda f: (f / "adapter_config.json").write_bytes(b"\xff"),
    "is damaged .*header": lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99),
    "has peft_type None": lambda f: _edited(f, peft_type=None),
    "is damaged, or no adapter of this llama .lora_alpha": lambda f: _edited(f, lora_alpha=None),
    "no adapter of this llama .*lora_B.weight": lambda f: _lost(f, "lora_B.weight"),
    "it has no tensors": lambda f: _lost(f, ""),
}


@pytest.mark.parametrize("beginning", ["gaussian", "orthogonal", "mica"])
def test_what_began_without_changing_the_base_is_read(beginning, written, tmp_path):
    options = peft.LoraConfig(**LORA | {"r": 4}, init_lora_weights=beginning)
    config, params = load_adapter(*written(tmp_path, options), FAMILIES["llama"])
    assert config.finetuning.rank == 4 and params


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_adapter_is_named_in_one_line(message, written, tmp_path):
    folder, config = written(tmp_path, peft.LoraConfig(**LORA))
    DAMAGE[message](folder)
    with pytest.raises(UserError, match=message) as caught:
        load_adapter(folder, config, FAMILIES["llama"])
    assert "\n" not in str(caught.value)
