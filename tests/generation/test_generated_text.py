"""Tokens that were generated become the text that goes on from the prompt, in whole characters."""

import itertools
import types

import numpy as np
import pytest
import tokenizers

from configs import default
from lm.config import override
from lm.evaluation import task_evaluation
from lm.generation import Continuation, Speed, beam_search_steps, generate, stream
from lm.tasks import build_task
from lm.tasks.layout import Layout
from tests.generation.test_generate import model_and_params
from tests.multibyte_tokenizers import KINDS, made

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def ids_of(tokenizer, texts):
    """The tokens of texts behind the one that opens them."""
    return [np.append(tokenizer.start, each.ids) for each in tokenizer.encode_batch(texts)]


def steps(tokenizer, *rows):
    """The next token of every row, END behind each."""
    longest = max(map(len, rows))
    return np.array([[*row, *[tokenizer.end] * (longest - len(row))] for row in rows]).T


def test_a_continuation_keeps_its_first_space():
    tokenizer = made("byte_fallback")
    (word,) = tokenizer.encode_batch(["the"])[0].ids
    prompts = ["then", "the net"]
    ids = ids_of(tokenizer, prompts)
    pieces = list(stream(tokenizer, prompts, ids, steps(tokenizer, [word], [word, word])))
    assert "".join(pieces) == "then the\n--------\nthe net the the\n"
    none = ids_of(tokenizer, [""])
    assert "".join(stream(tokenizer, [""], none, steps(tokenizer, [word]))) == "the\n"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", ["né🙂", "🙂🙃🙂", "日本", "n\ufffd"])
def test_a_last_character_that_lacks_bytes_is_left_out(name, text):
    tokenizer = made(name)
    ids = tokenizer.encode_batch([text])[0].ids.tolist()
    found = [tokenizer.decode(ids[:size], final=False) for size in range(len(ids) + 1)]
    assert all(text.startswith(each) for each in found) and found[-1] == text
    # Each character appears with the last of its tokens.
    assert [each for each, _ in itertools.groupby(found)] == [
        text[:size] for size in range(len(text) + 1)
    ]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["then é🙂", " the\n  日本", "▁🙂▁ n", "", "🙂🙃the"])
def test_whole_texts_decode_as_the_library_has_them(text):
    tokenizer = made("byte_fallback")
    ids = [tokenizer.start, *tokenizer.encode_batch([text])[0].ids.tolist(), tokenizer.end]
    backend = tokenizers.Tokenizer.from_str(tokenizer.json)
    assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", KINDS)
def test_bytes_that_no_character_has_are_shown_and_spoil_none_beside_them(name):
    tokenizer = made(name)
    face, letter = (tokenizer.encode_batch([text])[0].ids.tolist() for text in ("🙂", "é"))
    face, wrong = face[-4:], letter[-1]  # 0xA9, which begins nothing
    assert tokenizer.decode([wrong], final=False) == REPLACEMENT
    ids = [*face, wrong, *face, *face[:3]]
    assert tokenizer.decode(ids, final=False) == f"🙂{REPLACEMENT}🙂"
    assert tokenizer.decode(ids).startswith(f"🙂{REPLACEMENT}🙂{REPLACEMENT}")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prompt", ["the", "🙂", "🙂é" * 20], ids=["word", "character", "many"])
def test_no_text_ends_within_a_character_whichever_prompt_it_follows(name, prompt):
    tokenizer = made(name)
    ids = ids_of(tokenizer, [prompt] * 2)
    both = tokenizer.encode_batch([f"{prompt}🙃é🙂"])[0].ids[len(ids[0]) - 1 :].tolist()
    for lacking, text in ((1, "🙃é"), (3, "🙃é"), (5, "🙃"), (7, "")):
        row = np.array(both[:-lacking])
        texts = "".join(stream(tokenizer, [prompt] * 2, ids, steps(tokenizer, row, row)))
        assert texts == f"{prompt}{text}\n--------\n{prompt}{text}\n"


def test_a_stop_string_across_the_tokens_of_a_character_ends_a_text():
    tokenizer = made("byte_fallback")
    written = Continuation(tokenizer, tokenizer.encode_batch(["the🙂"])[0].ids, ["🙃n"])
    for token in tokenizer.encode_batch(["x🙂🙃n🙂"])[0].ids.tolist():
        written.add(token)
    assert written.ended and written.text == " x🙂"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KINDS)
def test_a_long_text_is_the_whole_one_at_every_token_and_each_costs_as_much(name, seed):
    tokenizer = made(name)
    words = ["the", " then", "🙂", "é", " ", "日本", REPLACEMENT]
    draw = np.random.default_rng(seed)
    ids = tokenizer.encode_batch(["".join(draw.choice(words, 200))])[0].ids
    if seed:  # characters without their ends, and ends of none
        ids = ids[draw.random(len(ids)) < 0.9]
    prompt, ids = tokenizer.encode_batch(["the 🙂" * 9])[0].ids.tolist(), ids.tolist()
    before, sizes = tokenizer.decode(prompt), []
    text = Continuation(tokenizer, prompt, ["never"])
    for size, token in enumerate(ids, start=1):
        text.add(token)
        whole = tokenizer.decode([*prompt, *ids[:size]], final=False)
        assert before + text.text == whole
        sizes.append(len(text._tokens))
    assert len(ids) > 300 and max(sizes) < 110


@pytest.mark.parametrize("name", KINDS)
def test_a_written_answer_is_a_text_of_its_own_in_whole_characters(name, monkeypatch):
    tokenizer = made(name)
    ids = tokenizer.encode_batch(["the é🙂"])[0].ids[:-1]
    monkeypatch.setattr(task_evaluation, "generate", lambda *_, **__: iter(ids[:, None]))
    config = override(default.get_config(), {"task.name": "seq2seq", "task.max_new_tokens": 9})
    layout = Layout(64, tokenizer.end, tokenizer.end)
    data = types.SimpleNamespace(task=build_task(config), tokenizer=tokenizer, layout=layout)
    program = types.SimpleNamespace(model=None)
    said = task_evaluation.generate_answers(
        program, {}, data, config, [{"texts": ["the"], "label": "the"}]
    )
    assert said == ["the é"]


def test_the_speed_leaves_out_what_compiles_where_there_is_more(monkeypatch):
    clock = iter([0.0, 7.0, 8.0, 8.5, 9.0])
    monkeypatch.setattr("lm.generation.speed.time.perf_counter", lambda: next(clock))
    speed = Speed(iter(np.zeros((4, 3), int)), compiling=2)
    assert len(list(speed)) == 4
    assert str(speed) == "12 tokens in 9.00 s; 6.0 tokens/s after compilation"
    clock = iter([0.0, 2.0])
    speed = Speed(iter(np.zeros((1, 3), int)))
    assert len(list(speed)) == 1
    assert str(speed) == "3 tokens in 2.00 s; 1.5 tokens/s including compilation"


def test_a_search_gives_the_best_continuation_step_by_step():
    model, params = model_and_params(7, **{"model.num_layers": 1, "model.scan": True})
    prompts = [np.array([1, 2]), np.array([3])]
    options = {"max_new_tokens": 3, "num_beams": 1, "eos_token_id": 6}
    found = np.stack(list(beam_search_steps(model, params, prompts=prompts, **options)))
    greedy = np.stack(list(generate(model, params, prompts, max_new_tokens=3, temperature=0.0)))
    for row in range(2):
        size = next((i for i in range(3) if found[i, row] == 6), 3)
        np.testing.assert_array_equal(found[:size, row], greedy[:size, row])
