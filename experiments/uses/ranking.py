"""Makes lists of films to rank by what was said of them, and compares a run with lexical ranking.

Command  python experiments/uses/ranking.py data
         python experiments/uses/ranking.py measure RUN   (of configs/uses/ranking.py)
Writes   data: film_lists.jsonl beside the archives
         measure: experiments/results/uses_ranking.png and uses_ranking.json

A list is eight sentences of reviews, drawn without replacement; the relevance of one is (its mean
rating + 4) / 2, from 0 to 4. The lexical baseline is a ridge regression of relevance on TF-IDF of
words and pairs of words, fitted on the lists that the run did not hold out; its items are ordered
by the regression. Intervals of 95 % are by bootstrap over held-out lists, that of the difference
over the same lists. Chance is the mean over 20 random orders.
"""

import csv
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline

from experiments import archives
from lm.experiment.provenance import commit, versions
from lm.tasks.ranking import ndcg

RESULTS = ROOT / "experiments" / "results"
KEPT = ("commit", "versions", "device", "parameters", "seconds", "config_hash")
FILE = archives.TO / "film_lists.jsonl"
SIZE, DRAWS = 8, 2000


def write_data() -> None:
    """The file, and how many lists it has."""
    with archives.fetch("movie.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    order = np.random.default_rng(0).permutation(len(rows))
    lists = order[: len(rows) // SIZE * SIZE].reshape(-1, SIZE)
    with FILE.open("w", encoding="utf-8") as file:
        for each in lists:
            some = [rows[i] for i in each]
            relevance = [round((float(row["label"]) + 4) / 2, 4) for row in some]
            line = {"items": [row["text"] for row in some], "relevance": relevance}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{FILE.name}: {len(lists)} lists of {SIZE}")


def interval(values: np.ndarray) -> list[float]:
    """The mean, and its 95 % interval over resampled lists."""
    draw = np.random.default_rng(0)
    means = [draw.choice(values, len(values)).mean() for _ in range(DRAWS)]
    return [round(float(x), 4) for x in (values.mean(), *np.quantile(means, (0.025, 0.975)))]


def measure(folder: pathlib.Path) -> None:
    """The figure and the file."""
    with FILE.open(encoding="utf-8") as file:
        lists = [json.loads(line) for line in file]
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    said = {tuple(p["label"]): p["predicted"] for p in map(json.loads, lines)}
    held_out = [each for each in lists if tuple(each["relevance"]) in said]
    train = [each for each in lists if tuple(each["relevance"]) not in said]
    assert len(held_out) == len(lines), "two lists have the same relevances"
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    baseline = make_pipeline(features, RidgeCV(np.logspace(-1, 1, 5), cv=5))
    baseline.fit(
        [text for each in train for text in each["items"]],
        [r for each in train for r in each["relevance"]],
    )
    draw = np.random.default_rng(0)
    orders = {
        "MiniLM, listwise": [said[tuple(each["relevance"])] for each in held_out],
        "words (ridge)": [np.argsort(-baseline.predict(each["items"])) for each in held_out],
    }
    scores = {
        name: {cut: _scores(held_out, each, cut) for cut in range(1, SIZE + 1)}
        for name, each in orders.items()
    }
    chance = {
        cut: np.mean([_scores(held_out, _random(held_out, draw), cut).mean() for _ in range(20)])
        for cut in range(1, SIZE + 1)
    }
    result = json.loads((folder / "result.json").read_text())
    first, second = scores.values()
    found: dict[str, Any] = {
        "ndcg": {
            name: {cut: interval(each) for cut, each in by_cut.items()}
            for name, by_cut in scores.items()
        },
        "difference": {cut: interval(first[cut] - second[cut]) for cut in first},
        "chance": {cut: round(float(value), 4) for cut, value in chance.items()},
        "lists": {"training": len(train), "held_out": len(held_out)},
        "run": {name: result[name] for name in KEPT if name in result},
        "commit": commit(),
        "versions": versions(),
    }
    (RESULTS / "uses_ranking.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    plot(found)


def _scores(lists: list[dict[str, Any]], orders: list[Any], cut: int) -> np.ndarray:
    pairs = zip(lists, orders, strict=True)
    return np.array([ndcg(each["relevance"], order, cut) for each, order in pairs])


def _random(lists: list[dict[str, Any]], draw: np.random.Generator) -> list[np.ndarray]:
    return [draw.permutation(SIZE) for _ in lists]


def plot(found: dict[str, Any]) -> None:
    """NDCG at every place, and how much better the run is."""
    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, by_cut in found["ndcg"].items():
        mean, low, high = np.array([*by_cut.values()]).T
        left.plot([*by_cut], mean, "o-", label=name)
        left.fill_between([*by_cut], low, high, alpha=0.2)
    left.plot([*found["chance"]], [*found["chance"].values()], ":", color="0.5", label="chance")
    left.set(xlabel="k, places of eight", ylabel="NDCG@k, 95 %")
    left.legend(frameon=False)
    mean, low, high = np.array([*found["difference"].values()]).T
    places = [*found["difference"]]
    right.errorbar(places, mean, yerr=[mean - low, high - mean], fmt="o", capsize=3)
    right.axhline(0, color="0.6", linestyle=":")
    right.set(xlabel="k, places of eight", ylabel="NDCG@k above that of words, 95 %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "uses_ranking.png")


if __name__ == "__main__":
    if sys.argv[1] == "data":
        write_data()
    else:
        measure(pathlib.Path(sys.argv[2]))
