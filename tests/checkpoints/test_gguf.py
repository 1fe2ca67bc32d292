"""A GGUF file is the checkpoint that transformers reads in it, with its tokenizer's words."""

import inspect
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("sentencepiece")

import gguf
import sentencepiece
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from configs import default
from lm.checkpoints.hf import open_checkpoint
from lm.checkpoints.hf.gguf_tokenizer import WORD_PATTERNS
from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.data import load_subword
from lm.errors import UserError
from tests.checkpoints.hf_checkpoints import B, L, V, batch_of, load, padding, tokens
from tests.checkpoints.sentencepiece_models import ASKED, LLAMA, TEXT, trained

KINDS = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
SIZES = {
    "vocab_size": V,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 20,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-5,
}


def their_model(kind, tied, **more):
    torch.manual_seed(0)
    classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    model = getattr(transformers, classes[kind])
    model = model(model.config_class(**SIZES, tie_word_embeddings=tied, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def write(path, model, stored_as="F32", **more):
    """The file that llama.cpp makes of a model: Llama's queries and keys have their halves
    interleaved.
    """
    kind = model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_rope_freq_base(SIZES["rope_theta"])
    writer.add_vocab_size(V)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    names = gguf.get_tensor_name_map(KINDS[kind], SIZES["num_hidden_layers"])
    quantized = gguf.GGMLQuantizationType[stored_as]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name and kind == "llama":
                halves = array.reshape(SIZES[heads], 2, -1, *array.shape[1:])
                array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        type_ = quantized if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        array = gguf.quants.quantize(array, type_)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "tied", "stored_as"),
    [("llama", False, "F32"), ("llama", True, "Q8_0"), ("qwen2", True, "F16")],
)
def test_states_and_logits_are_those_that_transformers_computes_of_the_file(
    kind, tied, stored_as, tmp_path
):
    file = write(tmp_path / "model.gguf", their_model(kind, tied), stored_as)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    ).eval()
    ours = load(file)
    assert ours.config.model.num_kv_heads == 2 and ours.config.output.tied == tied
    inputs, real = tokens(), padding()
    states, log_probs = ours.states(batch_of(inputs, real))
    with torch.inference_mode():
        found = theirs(
            input_ids=torch.tensor(inputs, dtype=torch.long),
            attention_mask=torch.tensor(real),
            output_hidden_states=True,
        )
    kept = real.astype(bool)
    for our, their in zip(states["stack"], found.hidden_states, strict=True):
        np.testing.assert_allclose(np.asarray(our)[kept], their.numpy()[kept], atol=2e-5, rtol=2e-5)
    wanted = torch.log_softmax(found.logits, -1).numpy()
    assert log_probs.shape == (B, L, V)
    np.testing.assert_allclose(log_probs[kept], wanted[kept], atol=2e-5, rtol=2e-5)


def test_numbers_that_are_not_quantized_are_those_of_the_model_to_the_bit(tmp_path):
    model = their_model("llama", False)
    tensors = open_checkpoint(f"hf:{write(tmp_path / 'model.gguf', model)}").tensors
    for name, tensor in model.state_dict().items():
        ours = tensors[name.removeprefix("model.")]
        assert ours.shape == tuple(tensor.shape)
        part = tuple(slice(1, size - 1) for size in tensor.shape)
        np.testing.assert_array_equal(ours[part], tensor.numpy()[part])


def words_of(tmp_path, **said):
    """The tokenizer of a file that says this of its own."""
    file = write(tmp_path / "words.gguf", their_model("llama", True), **said)
    return load_subword(str(find_tokenizer(file, tmp_path / "cache")))


@pytest.mark.parametrize("cuts", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_words_are_cut_and_merged_as_their_tokenizer_does(cuts, tmp_path):
    whole = Tokenizer(models.BPE(ignore_merges=cuts == "llama-bpe"))
    steps = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=WORD_PATTERNS[cuts] is None)
    ]
    if cuts == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if WORD_PATTERNS[cuts]:
        steps.insert(0, pre_tokenizers.Split(Regex(WORD_PATTERNS[cuts]), "isolated"))
    if cuts == "qwen2":
        whole.normalizer = normalizers.NFC()
    whole.pre_tokenizer = pre_tokenizers.Sequence(steps)
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|begin|>", "<|stop|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    whole.train_from_iterator(TEXT, trainer)
    names = [whole.id_to_token(i) for i in range(whole.get_vocab_size())]
    ours = words_of(
        tmp_path,
        tokenizer_model="gpt2",
        tokenizer_pre=cuts,
        token_list=names,
        token_types=[3, 3, *[1] * (len(names) - 2)],
        token_merges=[" ".join(pair) for pair in json.loads(whole.to_str())["model"]["merges"]],
        eos_token_id=1,
    )
    asked = [*ASKED, "In 2024, 12345 of them weren't there:\n\n  x += 1"]
    asked = [text for text in asked if not text.startswith("<s>")]
    found = [ids.tolist() for ids, *_ in ours.encode_batch(asked)]
    assert found == [whole.encode(text).ids for text in asked]
    assert [ours.decode(ids) for ids in found] == asked
    assert ours.end == 1


def test_pieces_are_those_of_sentencepiece(tmp_path):
    model = trained("bpe", **LLAMA)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    count = range(processor.vocab_size())
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else
        6 if processor.is_byte(i) else 1
        for i in count
    ]  # fmt: skip
    ours = words_of(
        tmp_path,
        tokenizer_model="llama",
        token_list=[processor.id_to_piece(i) for i in count],
        token_scores=[processor.get_score(i) for i in count],
        token_types=kinds,
        eos_token_id=processor.eos_id(),
    )
    found = [ids.tolist() for ids, *_ in ours.encode_batch(ASKED)]
    assert found == [processor.encode(text) for text in ASKED]
    assert ours.end == processor.eos_id()


def test_what_closes_a_text_is_no_text_though_a_file_does_not_say_so(tmp_path):
    names = ["<end>", "ab", *pre_tokenizers.ByteLevel.alphabet()]
    said = {"tokenizer_pre": "gpt-2", "token_list": names, "token_merges": ["a b"]}
    ours = words_of(tmp_path, tokenizer_model="gpt2", eos_token_id=0, **said)
    assert ours.end == 0
    with pytest.raises(UserError, match="has no end-of-document token"):
        words_of(tmp_path, tokenizer_model="gpt2", eos_token_id=999, **said)


def test_a_tokenizer_beside_the_file_is_preferred(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(tmp_path / "model.gguf", tmp_path) == tmp_path / "tokenizer.json"


def test_a_file_is_known_by_its_ending_and_a_folder_is_none(tmp_path):
    file = write(tmp_path / "MODEL.GGUF", their_model("llama", True))
    assert open_checkpoint(f"hf:{file}").family.model_type == "llama"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_checkpoint(f"hf:{tmp_path / 'folder.gguf'}")


def test_biases_of_a_llama_are_refused_and_not_dropped(tmp_path):
    for bias in ("attention_bias", "mlp_bias"):
        file = write(tmp_path / "model.gguf", their_model("llama", True, **{bias: True}))
        with pytest.raises(UserError, match=f"has {bias} = True"):
            open_checkpoint(f"hf:{file}").with_model(default.get_config())


def test_numbers_that_gguf_cannot_read_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in ("block_count", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(1)
    writer.add_tensor("token_embd.weight", np.ones((2, 1)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_checkpoint(f"hf:{tmp_path / 'model.gguf'}").tensors
    with pytest.raises(UserError, match=r"token_embd\.weight is stored as F64"):
        tensors["embed_tokens.weight"][:, :]


def _truncated(file):
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("change", "more", "line"),
    [
        (_truncated, {}, "model.gguf is truncated or damaged"),
        (lambda file: file.write_bytes(b"no model"), {}, "model.gguf is truncated or damaged"),
        (lambda file: file.unlink(), {}, "there is no file"),
        (
            None,
            {"rope_scaling_type": gguf.RopeScalingType.YARN},
            "scales rotary positions by 'yarn'",
        ),
        (None, {"tokenizer_model": "bert"}, "tokenizer of kind 'bert', none of gpt2, llama; put"),
        (None, {"tokenizer_model": "none", "eos_token_id": 0}, "tokenizer of kind 'none'"),
        (
            None,
            {
                "tokenizer_model": "gpt2",
                "tokenizer_pre": "gpt-2",
                "token_list": ["a", "b"],
                "token_merges": ["a b"],
            },
            "merges 'a b' to none of its tokens; it is damaged",
        ),
        (None, {"tokenizer_model": "llama", "token_list": ["a"]}, "has pieces without scores; put"),
        (
            None,
            {"tokenizer_model": "gpt2", "tokenizer_pre": "gpt-9", "token_list": ["a"]},
            "'gpt-9'",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(change, more, line, tmp_path):
    file = write(tmp_path / "model.gguf", their_model("llama", True), **more)
    if change:
        change(file)
    with pytest.raises(UserError) as error:
        config = default.get_config()
        config.cache_dir = str(tmp_path)
        open_checkpoint(f"hf:{file}").with_model(config)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_another_architecture_and_a_part_of_a_file_are_named(tmp_path):
    for name, key in (("gemma", None), ("llama", "split.count")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", name)
        if key:
            writer.add_uint16(key, 3)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    with pytest.raises(UserError, match="is of architecture 'gemma', not llama or qwen2"):
        open_checkpoint(f"hf:{tmp_path / 'gemma.gguf'}")
    with pytest.raises(UserError, match="is one of 3 parts; join them"):
        open_checkpoint(f"hf:{tmp_path / 'llama.gguf'}")


def test_words_end_where_transformers_ends_them():
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert WORD_PATTERNS["qwen2"] == PRETOKENIZE_REGEX
    parameters = inspect.signature(TikTokenConverter.__init__).parameters
    assert WORD_PATTERNS["llama-bpe"] == parameters["pattern"].default
