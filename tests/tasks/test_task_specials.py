"""Rows of tasks have the special tokens that their tokenizer puts around texts."""

import json

import numpy as np
import pytest

from configs import default
from lm.data.special_tokens import SpecialTokens
from lm.errors import UserError
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.records import Record
from tests.small_tokenizers import byte_level, folder_of, names_of, template

AROUND = {  # what stands around texts, and the row of "in" and "the it"
    "bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", "<s>in</s>theĠit</s>"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>in</s></s>theĠit</s>"),
    "t5": ("$A </s>", "$A </s> $B </s>", "in</s>theĠit</s>"),
    "llama": ("<s> $A", "<s> $A <s> $B", "<s>in</s>theĠit</s>"),
    "qwen2": ("$A", "$A $B", "in</s>theĠit</s>"),
}
SPECIAL = ("<s>", "</s>")


def made(name, folder):
    single, pair, row = AROUND[name]
    around = template(single, pair, *SPECIAL)
    return folder_of(folder, byte_level(*SPECIAL, around=around), eos_token="</s>"), row


def rows_of(tokenizer, name, record, length=24, **options):
    config = default.get_config()
    config.task.update(name=name, **options)
    task = build_task(config)
    choices = 2 if name == "multiple_choice" else 0
    layout = Layout(
        length, tokenizer.start, tokenizer.end, choices=choices, specials=tokenizer.specials
    )
    example = task.example(Record("a.jsonl line 1", record))
    if name == "multiple_choice":
        example["label"] = 0  # as all examples together settle it
    (encoded,) = task.tokenize([example], tokenizer)
    return task.rows(example, encoded, layout, {"x": 0})


@pytest.mark.parametrize("name", AROUND)
def test_two_texts_are_put_together_as_their_tokenizer_does_it(name, tmp_path):
    tokenizer, wanted = made(name, tmp_path)
    record = {"a": "in", "b": "the it", "label": "x"}
    options = {"text": ("a", "b"), "pooling": "last"}
    (row,) = rows_of(tokenizer, "classification", record, **options)
    ids = row["inputs"][row["segments"] > 0]
    assert "".join(names_of(tokenizer, ids)) == wanted
    assert row["target_positions"].tolist() == [len(ids) - 1]
    assert row["types"].any() == (tokenizer.specials.second_type == 1)
    record |= {"choices": ["the it", "in"], "label": 0}
    (row,) = rows_of(tokenizer, "multiple_choice", record, text=("a",), pooling="last")
    ids = row["inputs"][0][row["segments"][0] > 0]
    assert (
        "".join(names_of(tokenizer, ids)) == wanted and row["target_positions"][0] == len(ids) - 1
    )


@pytest.mark.parametrize("name", AROUND)
def test_an_answer_is_found_behind_any_number_of_special_tokens(name, tmp_path):
    tokenizer, _ = made(name, tmp_path)
    context = "the xyz in it"
    answer = {"text": ["xyz in"], "answer_start": [4]}
    record = {"question": "in it?", "context": context, "label": answer}
    options = {"text": ("question", "context"), "doc_stride": 2}
    for length in (24, 14):
        found = rows_of(tokenizer, "extractive_qa", record, length=length, **options)
        pointed = [row for row in found if row["targets"].any()]
        assert pointed
        for row in pointed:
            first, last = row["targets"]
            assert tokenizer.decode(row["inputs"][first : last + 1]) == "xyz in"
            assert context[row["spans"][first, 0] : row["spans"][last, 1]] == "xyz in"


@pytest.mark.parametrize("name", AROUND)
def test_a_decoders_source_and_a_conversation_open_as_their_tokenizer_opens_texts(name, tmp_path):
    tokenizer, _ = made(name, tmp_path)
    before = tokenizer.specials.before
    (row,) = rows_of(tokenizer, "seq2seq", {"a": "in", "label": "it"}, text=("a",))
    ids = row["tokens"][: int(np.sum(row["segments"] > 0)) + 1]
    opened = "".join(names_of(tokenizer, before))
    assert "".join(names_of(tokenizer, ids)) == f"{opened}in</s>it</s>"
    (row,) = rows_of(tokenizer, "instruction", {"a": "in", "label": "it"}, 40, text=("a",))
    assert row["tokens"][: len(before)].tolist() == list(before)
    assert tokenizer.decode(row["tokens"][len(before) :][:3]).startswith("###")


def test_a_conversation_that_a_template_refuses_is_named(tmp_path):
    pytest.importorskip("jinja2")
    config = {"eos_token": "</s>", "chat_template": "{{ raise_exception('no\\nsystem') }}"}
    tokenizer = folder_of(tmp_path, byte_level(*SPECIAL), **config)
    with pytest.raises(UserError, match=r"a\.jsonl line 1: the chat_template of .* \(no system\)"):
        rows_of(tokenizer, "instruction", {"a": "in", "label": "it"}, text=("a",))


def test_rows_of_a_stored_layout_are_those_of_the_tokenizer(tmp_path):
    tokenizer, _ = made("roberta", tmp_path)
    stored = json.loads(json.dumps(tokenizer.specials))
    assert SpecialTokens(*map(tuple, stored[:4]), stored[4]) == tokenizer.specials
