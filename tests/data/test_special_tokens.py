"""What the files of a tokenizer say of its special tokens is what is put around texts."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from lm.checkpoints.hf.gguf_tokenizer import special_token_settings
from lm.data import ByteTokenizer, load_subword, make_tokenizer
from lm.data.make_tokenizer import open_tokenizer, tokenizer_fingerprint
from lm.data.objectives import OBJECTIVES
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError
from lm.evaluation.prompting.query_encoder import QueryEncoder
from lm.evaluation.prompting.template import Query
from lm.generation import prompt_ids
from lm.tasks.layout import Layout

FRAME = encoder_decoder_tokens(None, 0)


def byte_level(*special, around=None):
    """A byte-level tokenizer that merges nothing, with these special tokens first."""
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = around
    backend.add_special_tokens(list(special))
    return backend


def template(single, pair, *names):
    ids = [(name, i) for i, name in enumerate(names)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def folder_of(tmp_path, backend, **config):
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_subword(str(tmp_path / "tokenizer.json"))


BEGIN = template("<b> $A", "<b> $A $B", "<b>")
BYTES = processors.ByteLevel()
# What the files say, and what then opens a text.
SAID = {
    "the post-processor": (BEGIN, {"bos_token": "<b>", "eos_token": "<e>"}, (0,)),
    "add_bos_token": (None, {"bos_token": "<b>", "eos_token": "<e>", "add_bos_token": True}, (0,)),
    "add_bos_token over bytes": (
        BYTES,
        {"bos_token": {"content": "<b>"}, "eos_token": "<e>", "add_bos_token": True},
        (0,),
    ),
    "that none is added": (
        BEGIN,
        {"bos_token": "<b>", "eos_token": "<e>", "add_bos_token": False},
        (),
    ),
    "bos_token alone": (None, {"bos_token": "<b>", "eos_token": "<e>"}, (0,)),
    "as GPT-2's": (BYTES, {"bos_token": "<e>", "eos_token": "<e>"}, ()),
    "as Qwen's": (BYTES, {"bos_token": None, "eos_token": "<e>", "add_bos_token": False}, ()),
    "nothing but what ends": (None, {"eos_token": "<e>"}, ()),
    "a class that opens": (
        None,
        {"bos_token": "<b>", "eos_token": "<e>", "tokenizer_class": "LlamaTokenizerFast"},
        (0,),
    ),
    "a class that does not": (
        None,
        {"bos_token": "<b>", "eos_token": "<e>", "tokenizer_class": "GPT2TokenizerFast"},
        (),
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_a_text_opens_as_the_files_of_its_tokenizer_say(said, tmp_path):
    around, config, opens = SAID[said]
    tokenizer = folder_of(tmp_path, byte_level("<b>", "<e>", around=around), **config)
    assert tokenizer.end == 1 and tokenizer.specials.before == opens
    (ids,) = prompt_ids(tokenizer, ["hi"], tokenizer.specials.before)
    assert ids.tolist() == [*opens, *tokenizer.encode_batch(["hi"])[0].ids]
    again = open_tokenizer(json.loads(json.dumps(tokenizer.spec)), tokenizer.json)
    assert (again.specials, again.start, again.hash) == (
        tokenizer.specials,
        tokenizer.start,
        tokenizer.hash,
    )


def test_end_opens_texts_where_no_file_says_anything(tmp_path):
    byte_level("</s>").save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_subword(str(tmp_path / "tokenizer.json"))
    assert tokenizer.specials == ((tokenizer.end,), *[(tokenizer.end,)] * 3, 1)


def test_an_empty_prompt_goes_on_from_what_predicts_a_first_token(tmp_path):
    config = SAID["as Qwen's"][1]
    tokenizer = folder_of(tmp_path, byte_level("<b>", "<e>", around=BYTES), **config)
    assert tokenizer.start == tokenizer.end
    assert prompt_ids(tokenizer, [""], ())[0].tolist() == [tokenizer.end]


@pytest.mark.parametrize("objective", ["causal", "prefix"])
@pytest.mark.parametrize("opens", [(), (7,), (7, 8)])
def test_an_answer_is_predicted_behind_what_opens_texts_and_nothing_else(objective, opens):
    tokenizer = ByteTokenizer()
    read = QueryEncoder(tokenizer, 8, objective, FRAME, opens)
    ((row,), _, cut), ((alone,), *_) = read([Query("ab", "cd"), Query("", "cd")])
    assert row.inputs.tolist() == [*opens, *b"abc"] and not cut
    assert row.targets.tolist() == [*b"cd"]
    assert row.target_positions.tolist() == [len(opens) + 1, len(opens) + 2]
    # Nothing stands before the first token of this one, so it is asked of what predicts one.
    assert alone.inputs.tolist() == [*(opens or (tokenizer.start,)), ord("c")]
    assert alone.targets.tolist() == [*b"cd"]
    ((cut_row,), _, cut), *_ = read([Query("0123456789", "yz")])
    assert cut and len(cut_row.inputs) == 8 and cut_row.inputs[-1] == ord("y")
    assert cut_row.inputs[: len(opens)].tolist() == list(opens)


@pytest.mark.parametrize("objective", ["causal", "prefix", "masked"])
def test_packed_documents_open_with_beginning_of_text_and_close_with_end(objective, tmp_path):
    backend = byte_level("<b>", "<e>", "<mask>", around=BEGIN)
    tokenizer = folder_of(tmp_path, backend, bos_token="<b>", eos_token="<e>", mask_token="<mask>")
    rows = {"tokens": np.array([[1, 5, 6, 1, 7, 1]]), "segments": np.array([[1, 1, 1, 2, 2]])}
    batch = OBJECTIVES[objective](tokenizer, 5)(rows, jax.random.key(0))
    assert np.asarray(batch.inputs)[0, [0, 3]].tolist() == [0, 0]
    if objective != "masked":
        assert np.asarray(batch.inputs).tolist() == [[0, 5, 6, 0, 7]]
        assert np.asarray(batch.targets).tolist() == [[5, 6, 1, 7, 1]]


def test_a_tokenizer_that_is_trained_here_says_that_end_opens_its_texts():
    tokenizer = make_tokenizer("bpe", 300, ["it is good, it was good, so good"] * 9)
    assert tokenizer.specials.before == (tokenizer.end,) and tokenizer.start == tokenizer.end
    backend = tokenizers.Tokenizer.from_str(str(tokenizer.json))
    assert backend.encode("it").ids[0] == tokenizer.end


def test_what_closes_and_separates_texts_is_the_post_processors(tmp_path):
    pairs = template("<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>")
    tokenizer = folder_of(tmp_path, byte_level("<s>", "</s>", around=pairs), eos_token="</s>")
    layout = Layout(9, 0, 1, specials=tokenizer.specials)
    row = layout.joined([np.array([5, 6]), np.array([7])])
    assert row["inputs"].tolist() == [0, 5, 6, 1, 1, 7, 1, 1, 1]
    assert row["segments"].tolist() == [1] * 7 + [0] * 2 and not row["types"].any()
    with pytest.raises(UserError, match=r"leaves no room for 2 texts; use 6 or more"):
        Layout(5, 0, 1, specials=tokenizer.specials).joined([np.array([5]), np.array([6])])


def test_a_file_beside_the_tokenizer_makes_it_another(tmp_path):
    path = str(tmp_path / "tokenizer.json")
    prints, hashes = set(), set()
    for said in (True, False):
        names = {"bos_token": "<b>", "eos_token": "<e>"}
        tokenizer = folder_of(tmp_path, byte_level("<b>", "<e>"), **names, add_bos_token=said)
        prints.add(tokenizer_fingerprint(path))
        hashes.add(tokenizer.hash)
    assert len(prints) == len(hashes) == 2


def test_tokens_that_only_the_files_beside_know_are_there_with_their_ids(tmp_path):
    decoder = {"259": {"content": "<|im_start|>", "special": True, "rstrip": True}}
    (tmp_path / "added_tokens.json").write_text('{"<think>": 258}')
    tokenizer = folder_of(
        tmp_path, byte_level("<b>", "<e>"), eos_token="<e>", added_tokens_decoder=decoder
    )
    backend = tokenizers.Tokenizer.from_str(str(tokenizer.json))
    assert [backend.token_to_id(name) for name in ("<think>", "<|im_start|>")] == [258, 259]
    assert tokenizer.vocab_size == 260 and not tokenizer.ordinary[259]
    assert 258 in tokenizer.encode_batch(["a<think>b"])[0].ids
    assert 259 not in tokenizer.encode_batch(["a<|im_start|>b"])[0].ids
    (tmp_path / "added_tokens.json").write_text('{"<think>": 7}')
    with pytest.raises(UserError, match=r"has '<think>' as token 258, and the files beside it as"):
        load_subword(str(tmp_path / "tokenizer.json"))


def test_a_special_token_that_is_only_a_word_of_the_vocabulary_is_kept_out_of_text(tmp_path):
    backend = byte_level("<e>")
    plain = json.loads(backend.to_str())
    plain["model"]["vocab"]["<begin>"] = 257
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>", "eos_token": "<e>"}')
    tokenizer = load_subword(str(tmp_path / "tokenizer.json"))
    assert tokenizer.start == 257 and not tokenizer.ordinary[257]


def test_a_damaged_file_beside_a_tokenizer_is_one_line(tmp_path):
    byte_level("<e>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON object, .*; fetch it"):
        load_subword(str(tmp_path / "tokenizer.json"))
    number = "9" * 5000  # more digits than Python reads
    said = f'{{"added_tokens_decoder": {{"{number}": {{"content": "a"}}}}}}'
    (tmp_path / "tokenizer_config.json").write_text(said)
    with pytest.raises(UserError, match=r"as number 9{20}, which is no text with a number; fetch"):
        load_subword(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("said", "opens"),
    [
        ({"model": "llama"}, True),
        ({"model": "llama", "add_bos_token": False}, False),
        ({"model": "gpt2", "pre": "qwen2"}, False),
        ({"model": "gpt2", "pre": "llama-bpe"}, True),
        ({"model": "gpt2", "pre": "gpt-2", "add_bos_token": True}, True),
    ],
)
def test_a_gguf_files_numbers_name_its_special_tokens(said, opens):
    tokens = ["<unk>", "<e>", "a", "<begin>"]
    said |= {"tokens": tokens, "bos_token_id": 3, "eos_token_id": 1, "chat_template": "{{ 1 }}"}
    settings = special_token_settings(said)
    assert settings["bos_token"] == "<begin>" and settings["eos_token"] == "<e>"
    assert settings["add_bos_token"] == opens and settings["chat_template"] == "{{ 1 }}"


@pytest.mark.parametrize("said", ["the post-processor", "as GPT-2's", "as Qwen's"])
def test_prompts_are_those_of_transformers(said, tmp_path):
    transformers = pytest.importorskip("transformers")
    around, config, _ = SAID[said]
    backend = byte_level("<b>", "<e>", around=around)
    backend.add_tokens([AddedToken("<x>")])
    tokenizer = folder_of(tmp_path, backend, **config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    wanted = theirs("the end <x>\n")["input_ids"]
    (ids,) = prompt_ids(tokenizer, ["the end <x>\n"], tokenizer.specials.before)
    assert ids.tolist() == wanted
