"""Points of an ablation that were never trained, for its tables, and what such a table says."""

import json

from etils import epath

from lm.experiment.point_list import ListedPoint


def start(folder, row: str, seed: int) -> ListedPoint:
    """One that has only begun."""
    workdir = epath.Path(folder) / f"{row.replace('/', '_')}-{seed}"
    workdir.mkdir(parents=True)
    return ListedPoint(row, seed, workdir)


def finished(folder, row: str, seed: int, bits: float, /, **changes) -> ListedPoint:
    """One that has ended; a keyword of None leaves that key out of its result."""
    point = start(folder, row, seed)
    result = {
        "eval/bits_per_byte": bits,
        "eval/nats_per_token": 1.4,
        "parameters": 831_232,
        "flops_per_token": 5.1e6,
        "tokens_per_second": 15_000.0 + seed,
        "seconds": 200.0 + seed,
        "device": "cpu",
        "mesh": {"data": 1},
        "versions": {"jax": "0.10.1", "flax": "0.12.0"},
        "commit": "abc123",
        "config_hash": row,
        "data_hash": "d41d",
        "seed": seed,
        "steps": 100,
    }
    result = {k: v for k, v in (result | changes).items() if v is not None}
    (point.workdir / "result.json").write_text(json.dumps(result))
    lines = [
        {"step": step, name: 2 + 5 / step}
        for step in range(10, 101, 10)
        for name in ("train/loss", "eval/bits_per_byte")
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (point.workdir / "metrics.jsonl").write_text(text + '{"step": 110, "trai')
    return point


def rows_of(table) -> dict:
    return {row.label: row for row in table.rows}


def notes_of(table) -> str:
    return "\n".join(table.notes)
