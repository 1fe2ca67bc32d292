"""Plants a fall of mood in a stream of news, and draws when a control chart raises the alarm.

Command  python experiments/uses/news.py data
         python experiments/uses/news.py chart CALM STREAM   (outputs of run.py predict)
Writes   data: news_train.tsv, news_calm.tsv and news_stream.tsv beside the archives
         chart: experiments/results/uses_news.png and uses_news.json

The planted fall: from the middle of the stream on, half of the sentences that people rated above 0
are replaced by sentences of the stream that they rated below -1. The chart is a one-sided CUSUM of
a score x (Page 1954): S_t = max(0, S_(t-1) + (m - x_t) / s - 1/4), m and s the mean and deviation
of calm sentences, and the alarm is S_t > h. Calm streams are made of whole editorials drawn from
the calm ones with replacement, and h is what 5 % of those as long as half of the stream exceed. It
is set on half of the calm editorials, and the rate measured on the others. Delays are over 1,000
streams, in which the editorials after the change are drawn likewise.
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

RESULTS = ROOT / "experiments" / "results"
ALLOWANCE, RATE, DRAWS = 0.25, 0.05, 1000
NAMES = ("id", "label", "text")
OTHERS = ("movie.tsv", "amazon.tsv", "tweets.tsv")
Row = dict[str, str]


def read(name: str) -> list[Row]:
    """The rows of a file beside the archives."""
    with archives.TO.joinpath(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def editorial(row: Row) -> int:
    """The number of a sentence's editorial."""
    return int(row["id"].partition("_")[0])


def write_data() -> None:
    """The three files, and where the fall begins."""
    for name in ("nyt.tsv", *OTHERS):
        archives.fetch(name)
    rows = sorted(read("nyt.tsv"), key=lambda row: [*map(int, row["id"].split("_"))])
    last = editorial(rows[-1])
    parts: dict[str, list[Row]] = {"train": [], "calm": [], "stream": []}
    for row in rows:
        share = editorial(row) / last
        parts["train" if share <= 0.5 else "calm" if share <= 0.8 else "stream"].append(row)
    parts["train"] += [row for name in OTHERS for row in read(name)]
    stream, draw = parts["stream"], np.random.default_rng(0)
    change = next(i for i in range(len(stream) // 2, len(stream)) if stream[i]["id"].endswith("_1"))
    bad = [row for row in stream if float(row["label"]) < -1]
    for place in range(change, len(stream)):
        if float(stream[place]["label"]) > 0 and draw.random() < 0.5:
            drawn = bad[draw.integers(len(bad))]
            stream[place] = drawn | {"id": f"{stream[place]['id']}_planted"}
    for name, part in parts.items():
        with archives.TO.joinpath(f"news_{name}.tsv").open("w", encoding="utf-8") as file:
            file.writelines("\t".join(line) + "\n" for line in [NAMES, *map(Row.values, part)])
        print(f"news_{name}.tsv: {len(part)} sentences")
    print(f"the fall begins at sentence {change} of the stream")


def cusum(scores: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    """S_1 .. S_n of scores [n]."""
    level, levels = 0.0, []
    for step in (mean - scores) / deviation - ALLOWANCE:
        level = max(0.0, level + step)
        levels.append(level)
    return np.array(levels)


def drawn(blocks: list[np.ndarray], length: int, draw: np.random.Generator) -> np.ndarray:
    """A stream of whole editorials, drawn with replacement."""
    chosen: list[np.ndarray] = []
    while sum(map(len, chosen)) < length:
        chosen.append(blocks[draw.integers(len(blocks))])
    return np.concatenate(chosen)[:length]


def blocks_of(rows: list[Row], scores: np.ndarray) -> list[np.ndarray]:
    """The scores of each editorial."""
    numbers = np.array([editorial(row) for row in rows])
    return [scores[numbers == number] for number in np.unique(numbers)]


def chart(calm: np.ndarray, stream: np.ndarray, change: int) -> tuple[dict, np.ndarray]:
    """What a score's chart does, and its levels over the stream."""
    calm_blocks, draw = blocks_of(read("news_calm.tsv"), calm), np.random.default_rng(1)
    setting, testing = calm_blocks[::2], calm_blocks[1::2]
    known = np.concatenate(setting)
    usual = float(known.mean()), float(known.std())
    length = len(stream) - change

    def peaks(blocks: list[np.ndarray]) -> np.ndarray:
        return np.array([cusum(drawn(blocks, length, draw), *usual).max() for _ in range(DRAWS)])

    limit = float(np.quantile(peaks(setting), 1 - RATE))
    levels = cusum(stream, *usual)
    alarms = np.flatnonzero(levels > limit)
    later = blocks_of(read("news_stream.tsv")[change:], stream[change:])
    found = [
        np.flatnonzero(cusum(drawn(later, length, draw), *usual) > limit) for _ in range(DRAWS)
    ]
    delays = [int(each[0]) + 1 for each in found if len(each)]
    return {
        "limit": round(limit, 3),
        "false_alarm_rate_measured": round(float(np.mean(peaks(testing) > limit)), 4),
        "first_alarm": int(alarms[0]) if len(alarms) else None,
        "delay_median_5_95": [round(float(q)) for q in np.quantile(delays, (0.5, 0.05, 0.95))],
        "missed": round(1 - len(delays) / DRAWS, 4),
    }, levels


def write_chart(folders: list[str]) -> None:
    """The figure and the file."""
    rows = {name: read(f"news_{name}.tsv") for name in ("train", "calm", "stream")}
    change = next(i for i, r in enumerate(rows["stream"]) if r["id"].endswith("_planted"))
    while not rows["stream"][change]["id"].startswith(f"{editorial(rows['stream'][change])}_1"):
        change -= 1
    people = {name: np.array([float(r["label"]) for r in part]) for name, part in rows.items()}
    lines = [pathlib.Path(f, "predictions.jsonl").read_text().splitlines() for f in folders]
    model = [np.array([json.loads(each)["predicted"] for each in part]) for part in lines]
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    words = make_pipeline(features, RidgeCV(np.logspace(-1, 2, 7)))
    words.fit([r["text"] for r in rows["train"]], people["train"])
    counted = [words.predict([r["text"] for r in rows[name]]) for name in ("calm", "stream")]
    scores = {"model": model, "words": counted, "people": [people["calm"], people["stream"]]}
    found: dict[str, Any] = {}
    levels = {}
    for name, pair in scores.items():
        calm, stream = map(np.asarray, pair)
        found[name], levels[name] = chart(calm, stream, change)
        found[name]["pearson_calm"] = round(float(np.corrcoef(calm, people["calm"])[0, 1]), 4)
    about = {"change": change, "stream": len(rows["stream"]), "commit": commit()}
    found |= about | {"versions": versions()}
    (RESULTS / "uses_news.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    draw_chart(scores, found, levels, change)


def draw_chart(scores: dict, found: dict, levels: dict, change: int) -> None:
    """The stream with its running mean, and the charts with their limit."""
    figure = Figure(figsize=(9, 5), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    stream, width = scores["model"][1], 50
    running = np.convolve(stream, np.ones(width) / width)[: len(stream)][width - 1 :]
    above.plot(stream, ".", color="0.75", markersize=3, label="a sentence, by the model")
    above.plot(range(width - 1, len(stream)), running, label=f"mean of the last {width}")
    above.set(ylabel="mood, -4 to 4")
    for name in ("model", "words"):
        (line,) = below.plot(levels[name] / found[name]["limit"], label=f"CUSUM of {name}")
        if (alarm := found[name]["first_alarm"]) is not None:
            below.plot(alarm, 1, "o", color=line.get_color())
            below.annotate(f"alarm at {alarm}", (alarm, 1), (6, -12), textcoords="offset points")
    below.axhline(1, color="0.4", linestyle="--")
    below.set(xlabel="sentence of the stream", ylabel="share of the alarm's limit", ylim=(0, 3))
    for axes in (above, below):
        axes.axvline(change, color="0.4", linestyle=":")
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "uses_news.png")


if __name__ == "__main__":
    if sys.argv[1] == "data":
        write_data()
    else:
        write_chart(sys.argv[2:])
