"""What stands beside the weights of an exported folder: special tokens, templates, generation."""

import functools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import default
from lm.checkpoints.hf import FAMILIES, matching_family, open_checkpoint, write_checkpoint
from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.checkpoints.hf.tokenizer_writer import base_settings, write_tokenizer
from lm.config import override
from lm.data import ByteTokenizer, load_subword, make_tokenizer
from lm.data.tokenizer import CharacterTokenizer
from lm.generation import generate, prompt_ids
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from tests.checkpoints.hf_checkpoints import V, batch_of, load, save

TEMPLATE = "{% for m in messages %}<|u|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
GENERATION = {"eos_token_id": [2, 4], "temperature": 0.6, "do_sample": True}


def words(*specials):
    """As many words as the checkpoints have."""
    return [*specials, *(f"w{i}" for i in range(V - len(specials)))]


def word_tokenizer(folder, *specials):
    """A tokenizer.json of whole words."""
    vocabulary = {word: i for i, word in enumerate(words(*specials))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(specials))
    made.save(str(folder / "tokenizer.json"))


def written(base, to, **settings):
    """Our model of a folder, exported untouched."""
    ours = load(base, **settings)
    checkpoint = open_checkpoint(f"hf:{base}")
    tokenizer = load_subword(ours.config.data.tokenizer, V)
    write_checkpoint(ours.config, ours.params, tokenizer, to, checkpoint.family, base=checkpoint)
    return to


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_pipeline_fills_masks_as_it_does_from_the_base(tmp_path, cache):
    base, _ = save("bert", tmp_path / "base")
    vocabulary = words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (base / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    folder = written(base, tmp_path / "out", cache=str(cache))
    asked = ["w3 [MASK] w5", "w7 w8 [MASK] w1 w2"]
    fill = functools.partial(transformers.pipeline, "fill-mask")
    theirs = fill(model=str(base), tokenizer=transformers.BertTokenizer.from_pretrained(base))
    ours = fill(model=str(folder))
    assert ours.tokenizer.pad_token == "[PAD]" and ours.tokenizer.pad_token_id == 0
    for a, b in zip(ours(asked, batch_size=2), theirs(asked, batch_size=2), strict=True):
        assert [x["token_str"] for x in a] == [x["token_str"] for x in b]
        np.testing.assert_allclose([x["score"] for x in a], [x["score"] for x in b], rtol=1e-4)


@pytest.fixture
def chatty(tmp_path):
    """A Llama that says everything of its tokens: in two files, or with its template in a third."""
    base, _ = save("llama", tmp_path / "base")
    word_tokenizer(base, "<pad>", "<s>", "</s>", "<unk>", "<|u|>")
    settings = {
        "bos_token": {"content": "<s>", "lstrip": False, "special": True},
        "eos_token": "</s>",
        "add_bos_token": True,
        "padding_side": "left",
        "chat_template": TEMPLATE,
        "tokenizer_class": "LlamaTokenizer",
        "name_or_path": "/somewhere/else",
    }
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    (base / "generation_config.json").write_text(json.dumps(GENERATION))
    ids = read(base, "config.json") | {"bos_token_id": 1, "eos_token_id": [2, 4]}
    (base / "config.json").write_text(json.dumps(ids | {"pad_token_id": 0}))
    return base


@pytest.mark.parametrize("apart", [False, True])
def test_special_tokens_templates_and_generation_of_a_base_are_kept(apart, chatty, tmp_path):
    if apart:
        (chatty / "chat_template.jinja").write_text(TEMPLATE)
        kept = read(chatty, "tokenizer_config.json")
        del kept["chat_template"]
        (chatty / "tokenizer_config.json").write_text(json.dumps(kept))
    folder = written(chatty, tmp_path / "out")
    config = read(folder, "config.json")
    assert [config[f"{n}_token_id"] for n in ("bos", "eos", "pad")] == [1, [2, 4], 0]
    assert read(folder, "generation_config.json") == GENERATION
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<s>",
        "</s>",
        "<pad>",
    )
    assert tokenizer.padding_side == "left"
    assert tokenizer("w1 w2")["input_ids"] == [1, 6, 7]
    assert "token_type_ids" not in tokenizer("w1")
    chat = [{"role": "user", "content": "w1"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|u|>w1</s>"
    assert "/somewhere" not in (folder / "tokenizer_config.json").read_text()
    assert read(folder, "special_tokens_map.json")["pad_token"] == "<pad>"


def test_a_text_goes_on_as_here_from_a_run_that_began_from_scratch(tmp_path):
    config = default.get_config()
    config.model.update(num_layers=1, d_model=16, num_heads=2, max_seq_len=64)
    texts = [f"def f{i}(x):\n    return x + {i}\n" for i in range(200)]
    tokenizer = make_tokenizer("bpe", 320, texts)
    model = build_model(config, 320)
    batch = batch_of(np.ones((2, 8), np.int32))
    keys = {"params": jax.random.key(0), "softmax": jax.random.key(1)}
    init = functools.partial(model.init, keys, batch, False, method="loss")
    draw = np.random.default_rng(0)
    flat = {
        path: ("scale" in path[-1]) + 0.5 * draw.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(jax.eval_shape(init)["params"]).items()
    }
    params = unflatten_dict(flat)
    folder = tmp_path / "out"
    write_checkpoint(config, params, tokenizer, folder, matching_family(config, FAMILIES, None))
    prompt = "def f(x):"
    (ids,) = prompt_ids(tokenizer, [prompt], (tokenizer.end,))
    ours = np.concatenate(list(generate(model, params, [ids], max_new_tokens=6, temperature=0.0)))
    write = transformers.pipeline("text-generation", model=str(folder))
    options = {"max_new_tokens": 6, "do_sample": False, "return_tensors": True}
    (theirs,) = write(prompt, **options)
    assert theirs["generated_token_ids"] == [*ids, *ours]
    assert write.tokenizer.mask_token == "<|mask|>"
    assert write.model.config.eos_token_id == write.tokenizer.eos_token_id == tokenizer.end
    assert read(folder, "generation_config.json")["bos_token_id"] == tokenizer.end


def test_texts_of_a_tasks_pipeline_are_its_rows(chatty, tmp_path):
    config = open_checkpoint(f"hf:{chatty}").with_model(
        override(default.get_config(), {"task.name": "classification", "output.tied": False})
    )
    tokenizer = load_subword(str(chatty / "tokenizer.json"), V)
    layout = Layout(length=12, start=tokenizer.start, end=tokenizer.end)
    ids = write_tokenizer(tmp_path, config, tokenizer, base_settings(chatty), layout)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    parts = [each.ids for each in tokenizer.encode_batch(["w1 w2", "w3"])]
    for number, asked in ((1, ("w1 w2",)), (2, ("w1 w2", "w3"))):
        row = layout.joined(parts[:number])
        assert theirs(*asked)["input_ids"] == row["inputs"][row["segments"] > 0].tolist()
    assert ids["pad_token_id"] == theirs.pad_token_id == 0


@pytest.mark.parametrize("odd", [5, {"lstrip": True}, {"content": 5}, ["<s>"], "<none>"], ids=str)
def test_a_special_token_that_is_no_text_counts_as_not_said(odd, chatty, tmp_path):
    settings = read(chatty, "tokenizer_config.json") | {"bos_token": odd}
    (chatty / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_subword(str(chatty / "tokenizer.json"), V)
    ids = write_tokenizer(tmp_path, default.get_config(), tokenizer, base_settings(chatty))
    assert ids.get("bos_token_id") == (None if odd == "<none>" else 1) and ids["eos_token_id"] == 2


def test_what_pads_a_text_that_is_read_at_its_end_is_not_what_ends_it(tmp_path):
    config = override(default.get_config(), {"task.name": "classification", "output.tied": False})
    tokenizer = make_tokenizer("bpe", 295, ["a b c d e f g h"] * 30)
    layout = Layout(length=12, start=tokenizer.start, end=tokenizer.end)
    ids = write_tokenizer(tmp_path, config, tokenizer, None, layout)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ids["pad_token_id"] == theirs.pad_token_id == tokenizer.mask != tokenizer.end
    assert theirs("a")["input_ids"][::2] == [tokenizer.end] * 2


def test_special_tokens_and_template_of_a_gguf_file_are_kept(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words("<unk>", "<s>", "</s>", "<pad>"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_chat_template(TEMPLATE)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    word_tokenizer(tmp_path, "<unk>", "<s>", "</s>", "<pad>")
    tokenizer = load_subword(str(tmp_path / "tokenizer.json"), V)
    base = base_settings(tmp_path / "base.gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    ids = write_tokenizer(folder, default.get_config(), tokenizer, base)
    assert ids == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs("w0")["input_ids"] == [1, 4]
    chat = [{"role": "user", "content": "w1"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "<|u|>w1</s>"


def test_bytes_are_written_as_a_tokenizer_that_has_the_same_ids(tmp_path):
    ours = ByteTokenizer()
    config = default.get_config()
    config.model.architecture = "encoder"
    ids = write_tokenizer(tmp_path, config, ours, None)
    assert ids == dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 255)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "größer  than\n\t日本 <|x|> 🙂 \x00"
    assert theirs(text)["input_ids"] == [255, *text.encode(), 255]
    assert theirs.decode(list(text.encode())) == text
    assert theirs(f"a{theirs.mask_token}b")["input_ids"] == [255, 97, 254, 98, 255]
    assert theirs.convert_tokens_to_ids("<|sentinel_10|>") == ours.sentinels[10]
    # Here it stays what it is, so that teacher and student have the same.
    assert find_tokenizer(tmp_path, tmp_path / "cache") is None


def test_characters_write_no_tokenizer(tmp_path):
    ids = write_tokenizer(tmp_path, default.get_config(), CharacterTokenizer(50), None)
    assert ids["eos_token_id"] == 0 and not list(tmp_path.iterdir())
