"""A grid's best point is chosen on one half of the held-out examples and reported on the other."""

import json

from configs import finetune
from experiments import grid
from lm.config import to_dict

TEXTS = [f"text {n}" for n in range(40)]


def write(folder, right):
    """A finished run that is right about these texts."""
    folder.mkdir()
    lines = [
        {"text": text, "label": "yes", "predicted": "yes" if text in right else "no", "nats": 0.5}
        for text in TEXTS
    ]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "config.json").write_text(json.dumps(to_dict(finetune.get_config("reviews"))))
    (folder / "data.json").write_text(json.dumps({"labels": ["no", "yes"]}))
    (folder / "result.json").write_text("{}")


def test_the_examples_that_choose_do_not_tell(tmp_path, capsys):
    choosing, telling = grid.halves([{"text": text} for text in TEXTS])
    assert len(choosing) + len(telling) == 40 and min(len(choosing), len(telling)) > 10
    write(tmp_path / "rate=1-seed0-aa", {each["text"] for each in choosing})
    write(tmp_path / "rate=2-seed0-bb", {each["text"] for each in telling})
    grid.main(str(tmp_path))
    *_, best = capsys.readouterr().out.splitlines()
    assert best == "best: rate=1, 0.0000 on the examples that did not choose it"
