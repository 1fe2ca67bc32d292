"""Every config of configs/uses/ trains: shrunk, on a few lines of text in place of its own."""

import importlib
import json

import pytest

from lm.config import override
from lm.experiment.train import train
from tests.test_golden import SHIPPED

SMALL = {
    "steps": 3,
    "epochs": None,
    "batch_size": 4,
    "data.vocab_size": None,
    "data.tokenizer": "bytes",
    "data.seq_len": 48,
    "data.validation_fraction": 0.25,
    "init_from": "",
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "schedule.warmup_steps": 1,
    "evaluation.every": 0,
    "evaluation.num_examples": 4,
    "log.every": 1,
    "log.trackers": (),
    "mesh.data": 1,
}
# What each learns from here, if not from text, and other keys that its rows need.
ROWS = {
    "uses.chat": ("question,answer", "what is {0}?,the number {0}", "is it odd {0}?,of course"),
    "uses.chinese": ("text,label", "很好的书{0},pos", "不喜欢{0},neg"),
    "uses.ranking": ("{", '{{"items": ["a fine film {0}", "a dull one"], "relevance": [4, 1]}}'),
}
OWN = {
    "uses.chat": {"data.seq_len": 64},
    "uses.policy": {"policy.prompt_length": 8, "policy.max_new_tokens": 12, "grad_accum_steps": 2},
    "uses.ranking": {"finetuning.method": "full"},  # from scratch there is no base to leave alone
}
USES = [(n, size) for n, sizes in SHIPPED.items() if n.startswith("uses.") for size in sizes]
QUICK = [("uses.policy", "learn"), ("uses.chat", "tuned")]


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(*use, marks=() if use in QUICK else pytest.mark.slow) for use in USES],
)
def test_a_use_trains(name, size, corpus_folder, cache, tmp_path):
    source = f"{corpus_folder}/*.txt"
    if name in ROWS:
        head, *lines = ROWS[name]
        rows = [line.format(number) for number in range(12) for line in lines]
        source = tmp_path / ("rows.jsonl" if head.startswith("{") else "rows.csv")
        source.write_text("\n".join([head, *rows]) if source.suffix == ".csv" else "\n".join(rows))
    config = importlib.import_module(f"configs.{name}").get_config(size)
    settings = SMALL | OWN.get(name, {}) | {"data.source": f"files:{source}"}
    result = train(override(config, settings | {"cache_dir": str(cache)}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    if config.policy.reward:
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert "train/reward" in json.loads(lines[0]) and "train/kl" in json.loads(lines[-2])
