"""Measures start-up and data: seconds to a first step, MB/s prepared, tokens/s delivered.

Command  python experiments/pace.py
Writes   experiments/results/pace.json

Start-up is a whole process of `run.py train` on configs/clm.py:tiny with a warm compilation cache,
until the first line of metrics.jsonl. Preparation is of the standard library's source with bytes,
into an empty cache. Delivery is Grain's batches of that corpus, against what the tiny model's
training consumes in the same run.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import clm
from lm.config import typed
from lm.data import DataConfig, prepare, train_batches
from lm.experiment.provenance import commit, versions


def first_step(cache: pathlib.Path) -> tuple[float, float]:
    """Seconds from starting a process to its first step's metrics, and its tokens/s later on."""
    with tempfile.TemporaryDirectory() as workdir:
        metrics = pathlib.Path(workdir, "run", "metrics.jsonl")
        command = [
            sys.executable,
            "run.py",
            "train",
            "--config=configs/clm.py:tiny",
            f"--workdir={metrics.parent}",
            f"--config.cache_dir={cache}",
            "--config.steps=50",
            "--config.evaluation.num_examples=16",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit("the run ended before its first step")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.wait()
        return seconds, json.loads((metrics.parent / "result.json").read_text())[
            "tokens_per_second"
        ]


def main() -> None:
    """Prints and writes the figures."""
    config: Any = clm.get_config("tiny")
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder)
        start = time.perf_counter()
        corpus = prepare(typed(DataConfig, config), cache / "data")
        seconds = time.perf_counter() - start
        size = sum(split["bytes"] for split in corpus.manifest["splits"].values())
        batches = train_batches(corpus.rows("train"), batch_size=config.batch_size, seed=0)
        rates = []
        for _ in range(9):
            start = time.perf_counter()
            for _ in range(50):
                next(batches)
            rates.append(
                50 * config.batch_size * config.data.seq_len / (time.perf_counter() - start)
            )
        cold, _ = first_step(cache)
        warm = [first_step(cache) for _ in range(3)]
    consumed = statistics.median(rate for _, rate in warm)
    results = {
        "device": "cpu",
        "commit": commit(),
        "versions": versions(),
        "seconds_to_first_step_cold": round(cold, 2),
        "seconds_to_first_step_warm": round(statistics.median(s for s, _ in warm), 2),
        "prepared_mb_per_second": round(size / 1e6 / seconds, 2),
        "delivered_tokens_per_second": round(statistics.median(rates)),
        "consumed_tokens_per_second": round(consumed),
        "delivered_over_consumed": round(statistics.median(rates) / consumed, 1),
    }
    print(json.dumps(results, indent=2))
    path = ROOT / "experiments" / "results" / "pace.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
