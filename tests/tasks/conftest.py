"""Small labelled corpora in which the label can be told from the text."""

import json
import random

import pytest

from configs import default

GOOD, BAD = ("fine", "good", "great", "lovely"), ("awful", "bad", "dull", "poor")
NAMES = {"PER": ("Ada", "Emmy", "Grace"), "LOC": ("Rome", "Oslo", "Lima")}


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A folder with the same 80 or so examples as a table, as columns and as JSON."""
    folder = tmp_path_factory.mktemp("labelled")
    draw = random.Random(0)
    reviews, sentences = [], []
    for number in range(96):
        good = number % 2
        words = [draw.choice(GOOD if good else BAD) for _ in range(draw.randint(2, 4))]
        reviews.append((f"{' '.join(words)} {number}", "pos" if good else "neg", len(words)))
        kind = draw.choice(list(NAMES))
        name = draw.choice(NAMES[kind])
        sentences.append([("we", "O"), ("saw", "O"), (name, f"B-{kind}"), (str(number), "O")])
    lines = ["text,label,rating", *(f'"{text}",{label},{n}' for text, label, n in reviews)]
    (folder / "reviews.csv").write_text("\n".join(lines))
    columns = ("".join(f"{w}\t{t}\n" for w, t in sentence) + "\n" for sentence in sentences)
    (folder / "names.conll").write_text("".join(columns))
    rows = []
    for text, label, number in reviews:
        word = text.split()[0]
        rows.append(
            {
                "question": "which word is first?",
                "context": text,
                "answers": {"text": [word], "answer_start": [0]},
                "choices": [text, "nothing of the kind"][:: 1 if number % 2 else -1],
                "choice": 0 if number % 2 else 1,
                "target": label,
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": label},
                ],
            }
        )
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def task_config(labelled, cache):
    """An encoder that learns its task within a few steps."""
    config = default.get_config()
    config.cache_dir = str(cache)
    config.steps = 12
    config.batch_size = 16
    config.data.update(source=f"files:{labelled}/reviews.csv", seq_len=40, validation_fraction=0.3)
    config.task.name = "classification"
    config.task.pooling = "mean"
    config.model.update(
        architecture="encoder", num_layers=1, d_model=32, num_heads=2, max_seq_len=64, init_std=0.1
    )
    config.output.tied = False
    config.optimizer.learning_rate = 2e-2
    config.schedule.warmup_steps = 2
    config.checkpoint.every = 5
    config.evaluation.update(every=6, num_examples=0)
    config.log.update(every=1, trackers=())
    config.mesh.update(data=1)
    return config
