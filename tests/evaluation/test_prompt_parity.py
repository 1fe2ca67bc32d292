"""The harness hears of a checkpoint from us what it hears from transformers, however texts open."""

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from configs import default
from lm.checkpoints.hf import with_checkpoint_model
from lm.checkpoints.pretrained import open_pretrained
from lm.evaluation.prompting.harness import Laboratory
from tests.small_tokenizers import byte_fallback, byte_level, folder_of, template

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BEGIN = template("<s> $A", "<s> $A $B", "<s>")
KINDS = {
    "opened, as Llama's": (byte_fallback(*SPECIAL, around=BEGIN, prepend="first"), "<s>"),
    "not opened, as Qwen's": (byte_level(*SPECIAL, around=template("$A", "$A $B")), None),
}


@pytest.fixture(params=KINDS, scope="module")
def both(request, tmp_path_factory):
    """The same checkpoint by our hands and by transformers'."""
    backend, bos = KINDS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    named = {"bos_token": bos, "eos_token": "</s>", "pad_token": "</s>", "chat_template": CHATML}
    folder_of(folder, backend, **named)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", dtype="float32")
    ours = default.get_config()
    ours.init_from = f"hf:{folder}"
    ours.batch_size, ours.mesh.data, ours.data.seq_len = 4, 1, 32
    ours.cache_dir = str(folder / "cache")
    return Laboratory(open_pretrained(with_checkpoint_model(ours))), theirs


def asked(kind, *arguments):
    settings = {"doc": {}, "metadata": ("task", 0, 1)}
    return [Instance(kind, arguments=each, idx=i, **settings) for i, each in enumerate(arguments)]


def test_likelihoods_are_those_of_transformers(both):
    ours, theirs = both
    pairs = [("is it in the end", " yes"), ("the", " käse 🙂"), ("", "yes"), ("it's", "it\n")]
    found, wanted = (
        [nats for nats, _ in model.loglikelihood(asked("loglikelihood", *pairs))]
        for model in (ours, theirs)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_rolling_likelihoods_are_those_of_transformers(both):
    """Where the tokenizer opens texts, the harness opens transformers' again, and counts the
    first opening as text; so the model itself is asked.
    """
    ours, theirs = both
    text = "the end is in it, yes"
    (found,) = ours.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    ids = theirs.tokenizer(text)["input_ids"]
    ids = ids if ours.run.opens else [theirs.prefix_token_id, *ids]
    with torch.inference_mode():
        log_probs = torch.log_softmax(theirs.model(torch.tensor([ids])).logits[0], -1).numpy()
    wanted = log_probs[np.arange(len(ids) - 1), ids[1:]].sum()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    if not ours.run.opens:
        (same,) = theirs.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
        np.testing.assert_allclose(found, same, rtol=1e-4)


def test_answers_in_a_conversation_compare_as_with_transformers(both):
    """The harness counts white space at a context's end as the answer's, so that likelihoods differ
    by that of a line's end, and the differences between answers are the same. It opens a template
    of transformers' that does not open texts itself, which apply_chat_template does not.
    """
    ours, theirs = both
    talk = [{"role": "user", "content": "is it in?"}]
    context = theirs.apply_chat_template(talk)
    assert ours.apply_chat_template(talk) == context
    if ours.run.opens:
        (prompt,) = ours._prompts([context], 64)
        given = theirs.tokenizer.apply_chat_template(talk, add_generation_prompt=True)
        assert prompt.tolist() == given["input_ids"]
        return
    pairs = asked("loglikelihood", (context, "yes it's"), (context, "the"), (context, "käse"))
    found, wanted = ([nats for nats, _ in m.loglikelihood(pairs)] for m in (ours, theirs))
    np.testing.assert_allclose(np.diff(found), np.diff(wanted), rtol=1e-4)
