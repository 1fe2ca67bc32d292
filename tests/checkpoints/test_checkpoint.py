"""What is written is read back, on any mesh; what is damaged or hostile is one clear line."""

import json
import os
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from configs import default
from lm.checkpoints.hf import (
    FAMILIES,
    matching_family,
    open_checkpoint,
    with_checkpoint_model,
    write_checkpoint,
)
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.pretrained import open_pretrained
from lm.checkpoints.restore import restore
from lm.checkpoints.teacher import teacher_config
from lm.config import override, to_dict
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.held_out import evaluate
from lm.experiment.train import train
from lm.generation import prompt_batch
from lm.model.resolve import attention_groups
from lm.training.program import build_program
from tests.commands import run


def small(**settings):
    config = default.get_config()
    config.model.update(num_layers=2, d_model=16, num_heads=2, max_seq_len=32)
    config.data.seq_len = 16
    config.mesh.data = 1
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a GPT-2 of bytes, and the parameters that were written."""
    # Weights so large that attention is far from even.
    config = small(**{"model.init_std": 0.4})
    params = build_program(config, 256).init_state(jax.random.key(3)).params
    folder = tmp_path_factory.mktemp("written") / "gpt2"
    write_checkpoint(
        config, params, ByteTokenizer(), folder, matching_family(config, FAMILIES, None)
    )
    return folder, params


def copied(folder, to):
    """The same folder again, to be damaged."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def loaded(folder, **settings):
    config = with_checkpoint_model(small(init_from=f"hf:{folder}", **settings))
    program = build_program(config, config.data.vocab_size)
    return pretrained_params(program, config, jax.random.key(0)), program


def test_what_is_written_is_read_back_to_the_bit(written):
    folder, params = written
    (again, report), _ = loaded(folder)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert report == f"starts from {folder} (gpt2)"


def test_a_teacher_has_the_softmaxes_of_its_checkpoint_and_not_its_students(written):
    taught = small(**{"regularization.teacher": f"hf:{written[0]}"})
    swapped = {
        "attention.weighting": "entmax",
        "attention.learn": ("alpha",),
        "attention.alpha": 1.3,
        "cross_attention.mechanism": "gated",
        "output.head": "mixture",
        "output.mixtures": 3,
        "finetuning.method": "lora",
        "finetuning.adapter_from": "somewhere",
    }
    found = teacher_config(override(taught, swapped))
    assert to_dict(found) == to_dict(teacher_config(taught))
    (group,) = attention_groups(found).values()
    assert (group.weighting, group.mechanism, found.output.head) == ("softmax", "scores", "softmax")


def test_every_device_of_a_mesh_reads_its_own_shards(written):
    folder, params = written
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.data": 2, "model.scan": True}
    (again, _), program = loaded(folder, **mesh)
    kernel = again["stack"]["layers"]["attention"]["query"]["kernel"]
    assert (
        kernel.sharding
        == program.abstract_state.params["stack"]["layers"]["attention"]["query"]["kernel"].sharding
    )
    assert kernel.addressable_shards[0].data.shape == (2, 8, 8)
    for layer in range(2):
        expected = params["stack"][f"layer_{layer}"]["attention"]["query"]["kernel"]
        np.testing.assert_array_equal(kernel[layer], expected)


def test_the_checkpoint_shapes_the_model_and_the_config_its_softmax(written):
    given = {"model.num_layers": 5, "model.norm": "rmsnorm", "model.dropout": 0.1}
    config = with_checkpoint_model(
        small(init_from=f"hf:{written[0]}", **given, **{"attention.weighting": "sink"})
    )
    assert (config.model.num_layers, config.model.norm, config.model.dropout) == (
        2,
        "layernorm",
        0.1,
    )
    assert config.attention.weighting == "sink"
    (params, report), _ = loaded(written[0], **{"attention.weighting": "sink"})
    assert "fresh: stack/layer_*/attention/mechanism/sink" in report
    assert params["stack"]["layer_0"]["attention"]["mechanism"]["sink"].shape == (2,)


def _truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, folder / "model.safetensors")


def _change(**keys):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return change


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_truncate, "model.safetensors is truncated or damaged"),
        (_drop_tensor, "lacks the tensor h.1.ln_1.weight, which is stack/layer_1/attention_norm"),
        (_change(model_type="gpt_neox"), "is of model_type 'gpt_neox', which is none of bert,"),
        (_change(activation_function="mish"), "has activation_function = 'mish', which is none of"),
        (_change(add_cross_attention=True), "has add_cross_attention = True, but of gpt2 only"),
        (_change(vocab_size=300), "has wte.weight [256, 16], but embedding here needs [300, 16]"),
        (_change(n_embd=32), "its vocabulary is another, or its config.json belongs to another"),
        (_write("config.json", "{"), "config.json is not JSON"),
        (_write("config.json", "{}"), 'no model_type; add the line "model_type": "gpt2", to it'),
        (_remove("config.json"), "has no config.json; give a folder that transformers saved"),
        (_remove("model.safetensors"), "has neither model.safetensors nor pytorch_model.bin"),
        (_write("model.safetensors.index.json", "[]"), "index.json is no JSON object"),
        (_write("model.safetensors.index.json", "{}"), "is no index of shards"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_line(damage, line, written, tmp_path):
    folder = copied(written[0], tmp_path)
    damage(folder)
    with pytest.raises(UserError) as error:
        loaded(folder)
    assert line in str(error.value) and "\n" not in str(error.value)


class _Hostile:
    """Makes a file when it is unpickled by a trusting unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("archive", [False, True])
def test_a_hostile_pickle_runs_nothing(archive, written, tmp_path):
    pytest.importorskip("torch")
    folder = copied(written[0], tmp_path)
    (folder / "model.safetensors").unlink()
    made = tmp_path / "made"
    content = pickle.dumps({"wte.weight": _Hostile(made)}, protocol=2)
    if archive:
        with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
            file.writestr("archive/data.pkl", content)
            file.writestr("archive/version", "3\n")
    else:
        (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"asks for \w+\.mkdir\).* nothing was run"):
        loaded(folder)
    assert not made.exists()
    pickle.loads(content)
    assert made.exists()


def test_models_that_transformers_lacks_are_not_written():
    with pytest.raises(UserError, match=r"no model with config.attention.weighting = 'entmax15'"):
        matching_family(small(**{"attention.weighting": "entmax15"}), FAMILIES, None)
    with pytest.raises(
        UserError, match=r"gpt2: config.model.position_embedding = 'alibi', not 'learned'"
    ):
        matching_family(small(**{"model.position_embedding": "alibi"}), FAMILIES, None)


def test_a_decoder_of_ours_is_a_gpt2_or_a_llama():
    llama = {
        "model.position_embedding": "rotary",
        "model.norm": "rmsnorm",
        "model.activation": "swiglu",
    }
    assert matching_family(small(), FAMILIES, None).model_type == "gpt2"
    both = small(**llama, **{"model.bias": False})
    assert matching_family(both, FAMILIES, None).model_type == "llama"


def test_an_absent_hub_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        open_checkpoint("hf:someone/something")
    with pytest.raises(UserError, match="there is no folder"):
        open_checkpoint(f"hf:{tmp_path}/nothing")


SOFTMAXES = [
    {"attention.weighting": "softcap", "attention.cap": 1e4},
    {"attention.weighting": "temperature", "attention.temperature": 1.0},
    {"attention.weighting": "sink", "attention.sink": -1e4},
    {"attention.weighting": "top_k", "attention.k": 1000},
    {"attention.weighting": "entmax", "attention.alpha": 1.0},
    {"attention.weighting": "entmax", "attention.anneal": ("alpha", 1.0, 1.5, 10)},
    {"output.head": "mixture", "output.mixtures": 1, "output.residual": True},
    {"output.head": "mixture", "output.mixtures": 3, "output.residual": True},
    {"output.head": "softmax", "output.cap": 1e6},
]


def log_probs(folder, **settings):
    """Of some words, by the checkpoint with another softmax."""
    (params, _), program = loaded(folder, **settings)
    words = jax.random.randint(jax.random.key(0), (2, 16), 0, 256)
    batch = prompt_batch(words, np.arange(16)[None].repeat(2, 0))
    apply = jax.jit(lambda p: program.model.apply({"params": p}, batch, method="log_probs"))
    return np.asarray(apply(params))


@pytest.fixture(scope="module")
def unchanged(written):
    return log_probs(written[0])


@pytest.mark.parametrize("settings", SOFTMAXES, ids=lambda s: str(list(s.values())))
def test_a_swap_at_the_softmax_changes_no_output(settings, written, unchanged):
    actual = log_probs(written[0], **settings)
    np.testing.assert_allclose(actual, unchanged, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_annealed_alpha_follows_its_schedule_while_the_rest_learns(written):
    settings = {"attention.weighting": "entmax", "attention.anneal": ("alpha", 1.0, 1.5, 4)}
    (params, _), program = loaded(
        written[0], **settings, **{"optimizer.ema_decay": 0.9, "schedule.warmup_steps": 0}
    )
    state = program.init_state(jax.random.key(0)).replace(params=params)
    tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, 256)
    rows = {"tokens": tokens, "segments": np.ones((8, 16), np.int32), "bytes": np.full(8, 16)}
    losses = []
    for _ in range(6):
        state, metrics = program.train_step(state, rows, jax.random.key(2))
        losses.append(float(metrics["train/loss"]))
        for tree in (state.params, state.ema_params):
            alpha = tree["stack"]["layer_1"]["attention"]["mechanism"]["annealed_alpha"]
            expected = 1.0 + 0.125 * min(int(state.step), 4)
            np.testing.assert_allclose(alpha, np.full(2, expected))
    assert losses[-1] < losses[0]


def test_a_checkpoint_trains_evaluates_and_is_written_again(written, small_config, tmp_path):
    base, config = tmp_path / "base", small_config
    copied(written[0], base.mkdir() or base)
    config.init_from, config.steps, config.schedule.warmup_steps = f"hf:{base}", 2, 1
    config = with_checkpoint_model(config)
    start = open_pretrained(config)
    (params, _), _ = loaded(base)
    jax.tree.map(np.testing.assert_array_equal, start.params, params)
    result = train(config, tmp_path / "run")
    assert result["eval/nats_per_token"] < evaluated(start).metrics["eval/nats_per_token"]
    run = restore(epath.Path(tmp_path / "run"))
    family = matching_family(run.config, FAMILIES, "gpt2")
    write_checkpoint(run.config, run.params, run.tokenizer, tmp_path / "out", family)
    (again, _), _ = loaded(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again, run.params)
    with pytest.raises(UserError, match="is not empty; give a new folder"):
        write_checkpoint(run.config, run.params, run.tokenizer, tmp_path / "out", family)


def evaluated(run):
    with jax.set_mesh(run.program.mesh):
        return evaluate(run.program, run.params, run.corpus, run.config)


def test_a_command_generates_from_a_checkpoint_without_a_workdir(written):
    start = f"--config.init_from=hf:{written[0]}"
    rest = ["--config.data.seq_len=16", "--prompt=ab", "--max_new_tokens=3"]
    finished = run("generate", "--config=configs/clm.py:tiny", start, *rest)
    assert finished.returncode == 0, finished.stderr
    assert "ab" in finished.stdout
    rate = r"\n3 tokens in [\d.]+ s; [\d.]+ tokens/s including compilation\n$"
    assert re.search(rate, f"\n{finished.stderr}")
    refused = run("generate", "--config=configs/clm.py:tiny", start, *rest, "--num_beams=999999")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "--num_beams=999999 is more than the " in refused.stderr
    refused = run("eval", "--config=configs/clm.py:tiny", start, "--step=3")
    assert refused.returncode == 2
    assert "--step needs --workdir=DIR" in refused.stderr
