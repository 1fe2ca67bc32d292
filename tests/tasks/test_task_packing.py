"""Conversations that share a row teach what they teach alone: their answers, each from its own
beginning.
"""

import jax
import numpy as np
import pytest

from configs import default
from lm.data import ByteTokenizer
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.objective import TaskObjective
from lm.tasks.packing import pack
from lm.training.build_model import build_model
from tests.small_models import init

SAID = [
    [("user", "two?"), ("assistant", "2")],
    [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", "ho"),
        ("user", "?"),
        ("assistant", "!"),
    ],
    [("user", "no"), ("assistant", "yes")],
]
L = 200


@pytest.fixture(scope="module")
def rows():
    """The config, the task's objective, each conversation's row, and the row of all of them."""
    config = default.get_config()
    config.task.update(name="instruction", text=("messages",))
    config.data.seq_len = L
    config.model.update(num_layers=1, d_model=16, num_heads=2, max_seq_len=L)
    task, tokenizer = build_task(config), ByteTokenizer()
    layout = Layout(length=L, start=tokenizer.start, end=tokenizer.end)
    alone = []
    for said in SAID:
        messages = [{"role": role, "content": content} for role, content in said]
        example = {"place": "here", "messages": messages}
        (encoded,) = task.tokenize([example], tokenizer)
        alone += task.rows(example, encoded, layout, {})
    (packed,) = pack(alone, layout)
    return config, TaskObjective(tokenizer, L, task, layout), alone, packed


def stacked(rows):
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_the_loss_counts_what_the_assistant_says_and_the_token_that_ends_it(rows):
    _, _, _, packed = rows
    tokenizer = ByteTokenizer()
    targets = packed["tokens"][1:][packed["weights"] > 0]
    parts = np.split(targets, np.flatnonzero(targets == tokenizer.end) + 1)
    assert [tokenizer.decode(part[:-1]) for part in parts[:-1]] == ["2", "ho", "!", "yes"]
    assert len(parts[-1]) == 0


@pytest.mark.slow
def test_a_packed_row_has_the_loss_and_the_gradient_of_its_conversations_alone(rows):
    config, objective, alone, packed = rows
    model, key = build_model(config, 257), jax.random.key(0)
    together, apart = (objective(stacked(each), key) for each in ([packed], alone))
    params = init(model, together)

    @jax.jit
    def nats(params, batch):
        each = model.apply({"params": params}, batch, method="negative_log_likelihood")
        return (each * batch.weights).sum(), each

    (total, each), gradient = jax.value_and_grad(nats, has_aux=True)(params, together)
    (expected, one), wanted = jax.value_and_grad(nats, has_aux=True)(params, apart)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradient, wanted)
    for number, row in enumerate(alone, start=1):
        inside = packed["segments"] == number
        size = int(row["segments"].sum())
        # Whatever stands beside it, a conversation is read as if it were alone.
        counted = row["weights"][:size] > 0
        np.testing.assert_allclose(
            each[0][inside][counted], one[number - 1][:size][counted], atol=1e-4
        )


@pytest.mark.parametrize("opens", [255, 7])
def test_the_last_token_of_a_document_counts_whatever_the_next_one_opens_with(opens):
    config = default.get_config()
    config.task.update(name="instruction", text=("messages",))
    task, layout = build_task(config), Layout(length=9, start=opens, end=255)
    said = [([opens, 1, 2, 255], [0, 0, 1, 1]), ([opens, 3, 255], [0, 1, 1]), ([opens, 4], [0, 1])]
    rows = [task.token_row(np.array(ids), np.array(counts), layout) for ids, counts in said]
    (packed,) = pack(rows, layout)
    kept = packed["weights"] > 0
    assert packed["tokens"][1:][kept].tolist() == [2, 255, 3, 255, 4]
    assert packed["tokens"][:-1][kept].tolist() == [1, 2, opens, 3, opens]
    assert packed["segments"].max() == 3
    for number, (ids, _) in enumerate(said, start=1):
        inputs = packed["tokens"][:-1][packed["segments"] == number]
        assert inputs[: len(ids) - 1].tolist() == ids[:-1]
    full, rest = pack(rows * 2, layout)
    assert full["weights"].sum() == rest["weights"].sum() == 5
