"""A checkpoint of transformers answers conversations by its own template, as transformers does."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fastapi")

import tokenizers
import torch
import transformers

from configs import default
from lm.checkpoints.hf import with_checkpoint_model
from lm.checkpoints.pretrained import open_pretrained
from tests.checkpoints.hf_checkpoints import V, save
from tests.serving.served import client_of, service_of

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<|u|>", "<|a|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|u|> ' if m['role'] == 'user' else '<|a|> ' }}{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)


@pytest.fixture
def checkpoint(tmp_path):
    """A Llama of words with a template, and transformers' model and tokenizer."""
    folder, model = save("llama", tmp_path / "chatty", noise=0.3)
    words = [*SPECIALS, *(f"w{i}" for i in range(V - len(SPECIALS)))]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(SPECIALS))
    made.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = named | {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return folder, model.eval(), tokenizer


@pytest.mark.slow
def test_a_conversation_is_answered_as_by_transformers(checkpoint, tmp_path):
    folder, model, tokenizer = checkpoint
    config = default.get_config()
    config.init_from, config.mesh.data = f"hf:{folder}", 1
    config.data.seq_len, config.cache_dir = 16, str(tmp_path / "cache")
    run = open_pretrained(with_checkpoint_model(config))
    talk = [{"role": "user", "content": "w1 w2"}]
    talk += [{"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4 w5"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with torch.inference_mode():
        expected = model.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist()
    with client_of(service_of(run, max_model_len=None)) as client:
        body = {"model": "small", "messages": talk, "max_tokens": 5, "temperature": 0}
        found = client.post("/v1/chat/completions", json=body | {"logprobs": True}).json()
        assert found["usage"]["prompt_tokens"] == len(ids)
        said = [each["token"] for each in found["choices"][0]["logprobs"]["content"]]
        ends = expected.index(2) + 1 if 2 in expected else len(expected)
        assert said == tokenizer.convert_ids_to_tokens(expected[:ends])
        broken = {"role": "user", "content": "w1 <|a|> w2"}
        body["messages"] = [broken]
        assert client.post("/v1/chat/completions", json=body).status_code == 200
