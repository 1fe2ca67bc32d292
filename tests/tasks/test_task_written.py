"""What an evaluation asks for in writing fits into the model, however long the source is."""

import types

import numpy as np
import pytest

from configs import default
from lm.config import override
from lm.data import ByteTokenizer
from lm.data.special_tokens import encoder_decoder_tokens
from lm.errors import UserError
from lm.evaluation import task_evaluation
from lm.generation.prompts import pad_prompts
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from lm.training.validate import check

MOST = {("decoder", 64): 30, ("decoder", 200): 166, ("encoder_decoder", 64): 63}


@pytest.mark.parametrize(("architecture", "positions"), MOST)
@pytest.mark.parametrize("size", [0, 20, 100])
def test_a_source_of_any_size_leaves_room_for_the_answer(
    architecture, positions, size, monkeypatch
):
    settings = {"task.name": "seq2seq", "data.seq_len": 64, "model.max_seq_len": positions}
    config = override(default.get_config(), settings | {"model.architecture": architecture})
    most = MOST[architecture, positions]
    model = build_model(config, 257)

    def generate(model, params, prompts, *, max_new_tokens, temperature, sources):
        pad_prompts(model, prompts, sources, max_new_tokens, max_new_tokens, False)
        return iter([np.zeros(len(prompts), int)] * max_new_tokens)

    monkeypatch.setattr(task_evaluation, "generate", generate)
    for longest in (1, 10, most):
        asking = override(config, {"task.max_new_tokens": longest})
        check(asking)
        task, layout = build_task(asking), Layout(64, 255, 255, architecture != "decoder")
        data = types.SimpleNamespace(task=task, tokenizer=ByteTokenizer(), layout=layout)
        example = {"texts": ["x" * size], "label": "y"}
        program = types.SimpleNamespace(model=model)
        (said,) = task_evaluation.generate_answers(program, {}, data, asking, [example])
        assert len(said) == longest
    with pytest.raises(UserError, match=f"use at most {most}"):
        check(override(config, {"task.max_new_tokens": most + 1}))


def test_an_encoder_decoder_learns_between_the_tokens_of_its_checkpoint():
    config = override(default.get_config(), {"task.name": "seq2seq"})
    task, frame = build_task(config), encoder_decoder_tokens(((0,), (2,), (2, 0)), 255)
    layout = Layout(6, 255, 255, has_encoder=True, encoder_decoder=frame)
    encoded = ByteTokenizer().encode_batch(["abcdefgh", "xy"])
    (row,) = task.rows({}, encoded, layout, {})
    assert row["encoder_tokens"].tolist() == [0, *b"abcd", 2]
    assert row["tokens"].tolist() == [2, 0, *b"xy", 255, 255, 255]
    assert row["weights"].tolist() == [0, 1, 1, 1, 0, 0]
