"""Compares ways to make a trained model smaller: bytes, speed, held-out loss and accuracy.

Command  python experiments/compressed_models.py [--workdir=runs/compressed_models]
Writes   experiments/results/compressed_models.md and .json

Two small models, trained for each of three seeds: a decoder of bytes on the standard library's
source, and an encoder from scratch on labelled snippets of film reviews (experiments/archives.py).
Rows below "float32" are the same runs with weights compressed after training; those of the decoder
below these are trained anew: pruned to half of the kernels' weights, with tokens' vectors of 16
features (a factorised output), or as a student of half the layers that the seed's run teaches.

Bytes are of all parameters as they are stored: of a pruned kernel the weights that are not 0, and a
bit for each. Speed is the time of float32's evaluation step over that of the row's, in turns in one
process, medians; weights in integers become float32 within the step. Differences are paired within
seeds, with 95 % intervals of Student's t.
"""

import argparse
import json
import pathlib
import sys

import jax
import numpy as np
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import default
from experiments.archives import fetch
from experiments.timing import interleaved, median_ratio
from lm.checkpoints.compression import (
    COMPRESSIONS,
    compressed,
    dequantized_params,
    quantized_params,
    stored_bytes,
)
from lm.checkpoints.export.command import export
from lm.checkpoints.restore import restore
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data.batches import eval_batches
from lm.evaluation.held_out import evaluate
from lm.experiment.ablation.statistics.significance import paired_t_test
from lm.experiment.provenance import commit, versions
from lm.experiment.train import train

SEEDS = (0, 1, 2)
ROUNDS = 9
RESULTS = pathlib.Path(__file__).parent / "results"
COMMON = {
    "model.d_model": 64,
    "model.num_heads": 4,
    "model.num_layers": 2,
    "schedule.warmup_steps": 20,
    "optimizer.learning_rate": 3e-3,
    "evaluation.every": 0,
    "checkpoint.every": 0,
    "log.trackers": (),
    "mesh.data": 1,
}
TRAINED = {
    "pruned, magnitude": {"regularization.sparsity": 0.5},
    "pruned, movement": {
        "regularization.sparsity": 0.5,
        "regularization.pruning_criterion": "movement",
    },
    "factorised output": {"model.embedding_dim": 16, "model.head_transform": True},
    "distilled, 1 layer": {"model.num_layers": 1, "regularization.distillation": 0.5},
}


def decoder_config():
    """A decoder of bytes."""
    settings = {"steps": 150, "batch_size": 16, "data.seq_len": 64, "model.max_seq_len": 64}
    settings |= {"evaluation.num_examples": 256}
    return override(default.get_config(), COMMON | settings)


def classifier_config():
    """An encoder of words, from scratch."""
    settings = {
        "model.architecture": "encoder",
        "task.name": "classification",
        "task.pooling": "mean",
        "data.source": f"files:{fetch('reviews.csv')}",
        "data.tokenizer": "bpe",
        "data.vocab_size": 4096,
        "data.seq_len": 48,
        "data.validation_fraction": 0.2,
        "model.max_seq_len": 48,
        "output.tied": False,
        "output.bias": True,
        "optimizer.learning_rate": 1e-3,
        "steps": 120,
        "batch_size": 32,
        "evaluation.num_examples": 0,
    }
    return override(default.get_config(), COMMON | settings)


# Of each model its config, the metric that is better when lower or higher, and what is trained.
MODELS = {
    "decoder": (decoder_config, {"bits_per_byte": "bits per byte"}, TRAINED),
    "classifier": (
        classifier_config,
        {"nats_per_label": "nats per label", "accuracy": "accuracy"},
        {},
    ),
}


def trained(config, folder: pathlib.Path) -> Restored:
    """The run of a config, trained if it is not there."""
    train(config, folder)
    return restore(epath.Path(folder))


def measured(run: Restored) -> dict[str, float]:
    """Its held-out metrics, by name."""
    with jax.set_mesh(run.program.mesh):
        metrics, _ = evaluate(run.program, run.params, run.corpus, run.config)
    return {name.removeprefix("eval/"): float(value) for name, value in metrics.items()}


def size(run: Restored) -> int:
    """Bytes of its parameters; see the module."""
    if run.compression:
        return stored_bytes(quantized_params(run.params, run.compression))
    total = 0
    for path, leaf in jax.tree.leaves_with_path(run.params):
        array = np.asarray(leaf)
        sparse = jax.tree_util.keystr(path).endswith("['kernel']") and np.mean(array == 0) > 0.1
        total += np.count_nonzero(array) * 4 + array.size // 8 if sparse else array.nbytes
    return int(total)


def step(run: Restored):
    """Its evaluation step on one batch, with its weights as they are stored."""
    rows = next(iter(eval_batches(run.corpus.rows("validation"), batch_size=16, limit=16)))
    compute = run.program.predict if run.config.task.name else run.program.eval_step
    if run.compression and not COMPRESSIONS[run.compression].dynamic:
        stored = jax.tree.map(jax.numpy.asarray, quantized_params(run.params, run.compression))
        quantized = jax.jit(lambda stored, rows: compute(dequantized_params(stored), rows))
        return lambda: _finished(quantized(stored, rows))
    return lambda: _finished(compute(run.params, rows))


def _finished(outputs) -> None:
    jax.block_until_ready(outputs)


def rows_of(model: str, workdir: pathlib.Path) -> dict[str, dict]:
    """Of each row, bytes, and by seed metrics and the time ratio."""
    make, _, anew = MODELS[model]
    found: dict[str, dict] = {}
    for seed in SEEDS:
        config = override(make(), {"seed": seed})
        base = trained(config, workdir / f"{model}-{seed}")
        runs = {"float32": base} | {name: compressed(base, name) for name in COMPRESSIONS}
        for name, settings in anew.items():
            known = dict(settings)
            if "regularization.distillation" in known:
                known["regularization.teacher"] = str(workdir / f"{model}-{seed}")
            place = workdir / f"{model}-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            runs[name] = trained(override(config, known), place)
        steps = {name: step(run) for name, run in runs.items()}
        for each in steps.values():
            each()  # compiles
        times = interleaved(steps, ROUNDS)
        for name, run in runs.items():
            row = found.setdefault(name, {"bytes": size(run), "seeds": {}})
            speed = median_ratio(times["float32"], times[name])
            row["seeds"][seed] = {**measured(run), "speed": speed}
        print(model, seed, {name: row["seeds"][seed] for name, row in found.items()}, flush=True)
    return found


def exports(workdir: pathlib.Path) -> dict[str, dict]:
    """Of the decoder's first seed, the bytes of StableHLO by its weights, and the certificate."""
    run, found = restore(epath.Path(workdir / "decoder-0")), {}
    for name in (None, "int8", "int4"):
        folder = workdir / f"export-{name}"
        if not folder.exists():
            export(compressed(run, name), "stablehlo", str(folder))
        certificate = json.loads((folder / "certificate.json").read_text())
        found[name or "float32"] = {
            "bytes": (folder / "model.stablehlo").stat().st_size,
            "max_difference": certificate["max_difference"],
            "passed": certificate["passed"],
        }
    return found


def table(found: dict[str, dict], metrics: dict[str, str]) -> list[str]:
    """The rows in lines of Markdown."""
    names = [f"{unit} | difference [95 %]" for unit in metrics.values()]
    rules = ["---:"] * (3 + 2 * len(metrics))
    lines = [f"| row | bytes | of float32 | speed | {' | '.join(names)} |"]
    lines.append(f"| --- | {' | '.join(rules)} |")
    base = found["float32"]
    for name, row in found.items():
        speed = np.median([seed["speed"] for seed in row["seeds"].values()])
        cells = [name, f"{row['bytes']:,}", f"{row['bytes'] / base['bytes']:.2f}", f"{speed:.2f}"]
        for metric in metrics:
            values, others = (
                {seed: each[metric] for seed, each in part["seeds"].items()} for part in (row, base)
            )
            test = paired_t_test(values, others)
            cells.append(f"{np.mean(list(values.values())):.4f}")
            low, high = test.interval or (0.0, 0.0)
            change = f"{test.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
            cells.append("" if row is base else change)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(workdir: pathlib.Path) -> None:
    """Trains, measures and writes."""
    found = {model: rows_of(model, workdir) for model in MODELS}
    written = exports(workdir)
    made = {"commit": commit(), "device": jax.devices()[0].device_kind, "versions": versions()}
    content = {"made": made, "rows": found, "stablehlo": written}
    (RESULTS / "compressed_models.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        "# Ways to make a trained model smaller",
        "",
        "`python experiments/compressed_models.py`",
    ]
    lines += [f"(commit {made['commit']}, {made['device']}, JAX {jax.__version__})", ""]
    for model, (_, metrics, _) in MODELS.items():
        lines += [f"## The {model}, {len(SEEDS)} seeds", "", *table(found[model], metrics), ""]
    lines += ["## StableHLO of the decoder", "", "| weights | bytes | largest difference |"]
    lines += ["| --- | ---: | ---: |"]
    for name, each in written.items():
        lines.append(f"| {name} | {each['bytes']:,} | {each['max_difference']:.1e} |")
    (RESULTS / "compressed_models.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/compressed_models")
    )
    main(parser.parse_args().workdir)
