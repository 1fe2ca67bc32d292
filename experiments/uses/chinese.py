"""Compares a run of configs/uses/chinese.py with a logistic regression on character n-grams.

Command  python experiments/uses/chinese.py RUN
Writes   experiments/results/uses_chinese.png and uses_chinese.json

The baseline has one to three characters by TF-IDF, is fitted on all reviews that the run did not
hold out, and is asked about those that it did. Intervals of 95 % are by bootstrap over reviews,
that of the difference over the same reviews.
"""

import csv
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from experiments import archives
from lm.experiment.provenance import commit, versions

RESULTS = ROOT / "experiments" / "results"
KEPT = ("commit", "versions", "device", "parameters", "seconds", "config_hash")
DRAWS = 2000


def interval(values: np.ndarray) -> list[float]:
    """The mean, and its 95 % interval over resampled reviews."""
    draw = np.random.default_rng(0)
    means = [draw.choice(values, len(values)).mean() for _ in range(DRAWS)]
    return [round(float(x), 4) for x in (values.mean(), *np.quantile(means, (0.025, 0.975)))]


def main(folder: pathlib.Path) -> None:
    """Measures, draws and writes."""
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    held_out = [json.loads(line) for line in lines]
    texts = {" ".join(each["text"].split()) for each in held_out}
    with archives.fetch("chinese.csv").open(newline="", encoding="utf-8") as file:
        rows = [(" ".join(row["text"].split()), row["label"]) for row in csv.DictReader(file)]
    train = [row for row in rows if row[0] not in texts]
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    baseline = make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))
    baseline.fit(*zip(*train, strict=True))
    said = baseline.predict([" ".join(each["text"].split()) for each in held_out])
    label = np.array([each["label"] for each in held_out])
    right = {
        "encoder": np.array([each["predicted"] for each in held_out]) == label,
        "character n-grams": said == label,
    }
    scores = {name: interval(hits.astype(float)) for name, hits in right.items()}
    first, second = (hits.astype(float) for hits in right.values())
    result = json.loads((folder / "result.json").read_text())
    found = {
        "accuracy": scores,
        "difference": interval(first - second),
        "reviews": {"training": len(train), "held_out": len(held_out)},
        "majority": round(float(max(np.mean(label == "pos"), np.mean(label == "neg"))), 4),
        "run": {name: result[name] for name in KEPT if name in result},
        "commit": commit(),
        "versions": versions(),
    }
    (RESULTS / "uses_chinese.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    draw(scores, found["majority"], held_out, first)


def draw(
    scores: dict[str, list[float]], majority: float, held_out: list, right: np.ndarray
) -> None:
    """Accuracies with intervals, and accuracy by the length of a review."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    left, middle = figure.subplots(1, 2)
    for place, (mean, low, high) in enumerate(scores.values()):
        left.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
    left.axvline(majority, color="0.6", linestyle=":")
    left.annotate("always the same", (majority, 0.5), rotation=90, va="center", ha="left")
    left.set(yticks=range(len(scores)), yticklabels=list(scores), xlabel="accuracy, 95 %")
    left.set_ylim(-0.5, len(scores) - 0.5)
    sizes = np.array([len(each["text"]) for each in held_out])
    edges = np.quantile(sizes, np.linspace(0, 1, 9))
    bins = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, 7)
    points = [(sizes[bins == b].mean(), right[bins == b].mean()) for b in range(8)]
    middle.semilogx(*zip(*points, strict=True), "o-")
    middle.set(xlabel="characters of a review", ylabel="accuracy of the encoder")
    for axes in (left, middle):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "uses_chinese.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
