"""Loaded checkpoints compute what transformers computes, and what we write does so again."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from configs import default
from lm.attention.positions import RelativeBias
from lm.checkpoints.hf import FAMILIES, matching_family, open_checkpoint, write_checkpoint
from lm.checkpoints.hf.tensors import open_tensors
from lm.data import ByteTokenizer
from lm.data.special_tokens import encoder_decoder_tokens
from lm.generation import generate
from tests.checkpoints.hf_checkpoints import BOTH, CASES, batch_of, load, padding, save, tokens

CLOSE = {"rtol": 0, "atol": 2e-5}


def question(name, model):
    """What is asked of both: inputs, which are real, types, and what a decoder has written."""
    inputs, real, types = tokens(), padding(), None
    if getattr(model.config, "type_vocab_size", 0) > 1:
        types = np.random.default_rng(1).integers(0, 2, inputs.shape)
    return inputs, real, types, tokens(seed=2) if name in BOTH else None


def expected(model, inputs, real, types, decoder):
    """Hidden states of each side of transformers, where they are real, and log-probabilities."""
    arguments = {"input_ids": inputs, "attention_mask": real, "token_type_ids": types}
    arguments["decoder_input_ids"] = decoder
    with torch.no_grad():
        arguments = {
            k: torch.as_tensor(np.asarray(v, np.int64))
            for k, v in arguments.items()
            if v is not None
        }
        out = model(**arguments, output_hidden_states=True)
    log_probs = torch.log_softmax(out.logits, -1)
    if decoder is None:
        return {"stack": out.hidden_states}, log_probs
    sides = {"encoder": out.encoder_hidden_states, "stack": out.decoder_hidden_states}
    return sides, log_probs


def same(actual, wanted, real, decoder):
    """Every state of each side, and the log-probabilities, agree wherever there is a token."""
    (states, log_probs), (their_states, their_log_probs) = actual, wanted
    assert states.keys() == their_states.keys()
    # The padding of the decoder's side is of no document; transformers masks the memory only.
    everywhere = np.ones_like(real, bool)
    where = {"encoder": real > 0, "stack": real > 0 if decoder is None else everywhere}
    for side, layers in states.items():
        assert len(layers) == len(their_states[side]) == 3
        for ours, theirs in zip(layers, their_states[side], strict=True):
            np.testing.assert_allclose(
                np.asarray(ours)[where[side]], np.asarray(theirs)[where[side]], **CLOSE
            )
    place = where["stack"]
    np.testing.assert_allclose(
        np.asarray(log_probs)[place], np.asarray(their_log_probs)[place], **CLOSE
    )


def check(folder, model, name, **settings):
    """Our model of a folder, whose every hidden state is that of transformers."""
    ours = load(folder, **settings)
    asked = inputs, real, types, decoder = question(name, model)
    batch = batch_of(inputs, real, types)
    if decoder is not None:
        memory = {"encoder_inputs": batch.inputs, "encoder_segments": batch.segments}
        memory["encoder_positions"] = batch.positions
        batch = batch_of(decoder).replace(**memory)
    same(ours.states(batch), expected(model, *asked), real, decoder)
    return ours


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A checkpoint of transformers by name, and ours of it, once they are known to agree."""

    @functools.cache
    def found(name):
        folder, model = save(name, tmp_path_factory.mktemp("theirs"))
        return model, check(folder, model, name)

    return found


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_of_every_layer_and_logits_are_those_of_transformers(name, checked):
    _, ours = checked(name)
    assert not ours.fresh and "without" not in ours.origin


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same_from_what_is_written(name, checked, tmp_path):
    model, ours = checked(name)
    kind = CASES[name][0]
    family = matching_family(
        ours.config, FAMILIES, ours.config.init_from or name.split()[0].strip(",")
    )
    write_checkpoint(ours.config, ours.params, _Words(), tmp_path / "ours", family)
    again, told = getattr(transformers, kind).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not told["missing_keys"] or name == "bert, tanh gelu, untied"
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    asked = question(name, model)
    same(expected(again.eval(), *asked), expected(model, *asked), asked[1], asked[3])


class _Words(ByteTokenizer):
    """As many words as the checkpoints have."""

    vocab_size = 67


def test_bfloat16_shards_and_scanned_layers_make_no_difference(tmp_path):
    folder, model = save("gpt2", tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    check(folder, model, "gpt2", **{"model.scan": True})
    half = model.to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    check(tmp_path / "half", half.float(), "gpt2")


def test_a_table_of_its_own_is_the_heads(tmp_path):
    _, model = save("t5 1.1", tmp_path / "tied")
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "untied")
    assert not check(tmp_path / "untied", model, "t5 1.1").config.output.tied


@pytest.mark.parametrize("zipped", [False, True])
def test_pickled_tensors_are_those_that_torch_reads(zipped, tmp_path):
    folder, model = save("albert", tmp_path)
    (folder / "model.safetensors").unlink()
    state = model.state_dict() | {"pooler": torch.arange(6).to(torch.bfloat16)[1::2]}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    if zipped:
        check(folder, model, "albert")
    found = open_tensors(folder)
    assert found.keys() == state.keys()
    for name, value in state.items():
        actual = found[name][(slice(None),) * value.ndim]
        np.testing.assert_array_equal(actual.astype(np.float32), value.float().numpy())


@pytest.mark.parametrize("side", [(8, 16, False), (32, 128, True), (32, 128, False)])
def test_buckets_of_distances_are_those_of_t5(side):
    buckets, farthest, causal = side
    distance = np.arange(-300, 300)
    place = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    expected = place(torch.tensor(-distance), not causal, buckets, farthest)
    table = jnp.arange(float(buckets))[:, None]
    actual = RelativeBias(table, farthest, causal)(jnp.asarray(distance)[None, None, None])
    np.testing.assert_array_equal(actual[0, 0, 0], expected)


def continued(model, inputs, real, steps):
    """The likeliest tokens that transformers adds to rows padded on the left."""
    settings = model.generation_config
    settings.decoder_start_token_id = getattr(model.config, "decoder_start_token_id", 0) or 0
    settings.eos_token_id = settings.forced_eos_token_id = settings.forced_bos_token_id = None
    arrays = {"input_ids": inputs, "attention_mask": real}
    arrays = {k: torch.as_tensor(np.array(v, np.int64)) for k, v in arrays.items()}
    found = model.generate(
        **arrays, max_new_tokens=steps, do_sample=False, num_beams=1, pad_token_id=0
    )
    return found[:, -steps:].numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_decoders_continue_prompts_of_any_length_token_for_token(name, tmp_path):
    folder, model = save(name, tmp_path, noise=0.4)
    ours, inputs, real = load(folder), tokens(), padding()[:, ::-1]
    prompts = [row[there > 0] for row, there in zip(inputs, real, strict=True)]
    steps = generate(ours.model, ours.params, prompts, max_new_tokens=8, temperature=0.0)
    expected = continued(model, inputs, real, 8)
    assert len(set(expected.ravel().tolist())) > 3
    np.testing.assert_array_equal(np.stack(list(steps), axis=1), expected)


@pytest.mark.parametrize("name", BOTH)
def test_encoder_decoders_answer_token_for_token(name, checked):
    model, ours = checked(name)
    inputs, real = tokens(), padding()
    memory = batch_of(inputs, real, memory=True)
    expected = continued(model, inputs, real, 8)
    start = getattr(model.config, "decoder_start_token_id", 0) or 0
    # Every token of theirs is our likeliest after those before it: ours would be the same.
    written = np.pad(expected[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    batch = batch_of(written).replace(
        encoder_inputs=memory.inputs,
        encoder_segments=memory.segments,
        encoder_positions=memory.positions,
    )
    likeliest = np.asarray(ours.apply(batch, "log_probs")).argmax(-1)
    np.testing.assert_array_equal(likeliest, expected)


@pytest.mark.parametrize("name", BOTH)
def test_texts_begin_as_transformers_shifts_labels_and_close_with_its_end(name, tmp_path):
    folder, model = save(name, tmp_path)
    if name != "bart":
        model.config.decoder_start_token_id = model.config.pad_token_id  # as T5's checkpoints do
    config = open_checkpoint(f"hf:{folder}").with_model(default.get_config())
    frame, end = encoder_decoder_tokens(config.special_tokens, 99), model.config.eos_token_id
    labels = torch.tensor([[*frame.opens[1:], 7, 8, end]])
    begun = model.prepare_decoder_input_ids_from_labels(labels)
    assert begun[0].tolist() == [*frame.opens, 7, 8]
    before = (model.config.bos_token_id,) if name == "bart" else ()
    assert (frame.before, frame.after) == (before, (end,))
