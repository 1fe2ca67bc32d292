"""Evaluates a regression on frozen features, the baseline of fine-tuning.

Command  python experiments/archives.py
         python experiments/frozen_features.py
Writes   experiments/results/frozen_features.json

MiniLM's last hidden states, averaged over a text's tokens, are the features of a ridge regression
(of ratings) or a logistic regression (of classes) by scikit-learn. Texts, tokens and the held-out
share are those of configs/finetune.py, so that the figures compare with its runs' own. The penalty
is chosen by cross-validation within the training texts.
"""

import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import finetune
from experiments.real_checkpoints import load
from lm.checkpoints.hf import with_checkpoint_model
from lm.experiment.provenance import commit, versions
from lm.model.transformer import Batch
from lm.tasks.metrics import interval
from lm.tasks.prepare import prepare_task
from lm.tasks.task_data import TaskData

TASKS = ("tweets", "amazon", "reviews")
TOGETHER = 64  # texts a call


def features(encode: Any, data: TaskData, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean hidden states [N, D] and targets [N] of a split."""
    rows = data.rows(split)
    rows = [rows[i] for i in range(len(rows))]
    inputs, segments = (np.stack([row[name] for row in rows]) for name in ("inputs", "segments"))
    parts = range(0, len(rows), TOGETHER)
    found = [encode(inputs[i : i + TOGETHER], segments[i : i + TOGETHER]) for i in parts]
    return np.concatenate(found), np.array([row["targets"][0] for row in rows])


def main() -> None:
    """Measures, prints and writes."""
    _, model, params = load(pathlib.Path(finetune.ARCHIVES).expanduser() / "minilm")

    @jax.jit
    def encode(inputs: jax.Array, segments: jax.Array) -> jax.Array:
        places = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
        batch = Batch(inputs, inputs, segments.astype(np.float32), segments, places)
        hidden: Any = model.apply({"params": params}, batch)
        return jnp.mean(hidden, axis=1, where=segments[..., None] > 0)

    result: dict[str, Any] = {}
    for name in TASKS:
        config = with_checkpoint_model(finetune.get_config(name))
        data = prepare_task(config, config.cache_dir)
        (x, y), (held_out, truth) = (features(encode, data, s) for s in ("train", "validation"))
        if config.task.name == "regression":
            chosen = RidgeCV(np.logspace(-2, 4, 13))
            metric = "pearson"
        else:
            penalties = {"C": np.logspace(-4, 2, 13)}
            chosen = GridSearchCV(LogisticRegression(solver="newton-cholesky"), penalties)
            metric = "accuracy"
        said = make_pipeline(StandardScaler(), chosen).fit(x, y).predict(held_out)
        pairs = np.stack([truth, said], axis=1)

        def measure(pairs: np.ndarray, _: int, metric: str = metric) -> float:
            if metric == "accuracy":
                return float(np.mean(pairs[:, 0] == pairs[:, 1]))
            found: Any = pearsonr(pairs[:, 0], pairs[:, 1])
            return float(found.statistic)

        low, high = interval(measure, pairs, 2)
        result[name] = {
            metric: measure(pairs, 2),
            "interval": [low, high],
            "train": len(y),
            "held_out": len(truth),
        }
        print(f"{name}: {metric} {result[name][metric]:.4f} [{low:.4f}, {high:.4f}]", flush=True)
    result |= {"commit": commit(), "versions": versions()}
    written = ROOT / "experiments" / "results" / "frozen_features.json"
    written.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
