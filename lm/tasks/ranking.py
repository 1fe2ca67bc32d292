"""Ranking: the texts of a list are ordered, the most relevant first, as in search and
recommendation.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data import Encoded
from lm.errors import UserError
from lm.tasks import metrics
from lm.tasks.base import Example, Labels, Numbers, Outputs, Prediction, Predictions, Texts
from lm.tasks.layout import Layout, Row
from lm.tasks.multiple_choice import MultipleChoice
from lm.tasks.records import Record

CUTS = (3, 10)  # of NDCG
MOST = 32.0  # the greatest relevance: gains are 2^r
# Of [N, 4]: NDCG at each of CUTS, whether a most relevant item is first, and nats.
METRICS = {
    **{f"ndcg_{cut}": metrics.mean_of(column) for column, cut in enumerate(CUTS)},
    "best_first": metrics.mean_of(len(CUTS)),
    "nats_per_list": metrics.mean_of(len(CUTS) + 1),
}


def ndcg(relevance: Sequence[float], order: Sequence[int], cut: int) -> float:
    """Normalised discounted cumulative gain of the first `cut` places, from 0 to 1 (Järvelin and
    Kekäläinen 2002; gains of Burges et al. 2005).

    DCG = sum_j (2^r(j) - 1) / log2(j + 1) over places j = 1 ... cut, r(j) the relevance of the item
    there; divided by the DCG of the best order. 1 where no item is relevant.
    """
    gains = np.exp2(np.asarray(relevance, np.float64)) - 1.0
    discounts = 1.0 / np.log2(np.arange(2, min(cut, len(gains)) + 2))
    best = np.sort(gains)[::-1][:cut] @ discounts
    return float(gains[np.asarray(order)][:cut] @ discounts / best) if best > 0 else 1.0


def targets_of(relevance: Sequence[float]) -> np.ndarray:
    """softmax(r), [C]: ListNet's probability of each item to be first (Cao et al. 2007)."""
    shifted = np.exp(np.asarray(relevance, np.float64) - max(relevance))
    return (shifted / shifted.sum()).astype(np.float32)


class Ranking(MultipleChoice):
    """Items of a list, each with a relevance of 0 or more; the order of the scores is predicted.

    `choices` holds the items as a list of texts (or names columns of one each), the label a list of
    as many numbers r. The columns of `text`, if any, are the query that is read beside every item.
    The loss of a list is the cross-entropy -sum_i softmax(r)_i log q_i, q the head's distribution
    over the items (ListNet's loss of the first place, Cao et al. 2007).
    """

    metrics = METRICS
    lower_is_better = ("nats_per_list",)
    confidence_of = "the first item"
    num_text_columns = (0, math.inf)

    @property
    def readout(self) -> str:
        """One of C texts, C times, each at its own weight."""
        return "ranking"

    def example(self, record: Record) -> Example:
        """See `Task`."""
        items = self.items(record)
        given = self.read_label(record)
        try:
            relevance = [float(each) for each in given]
        except (TypeError, ValueError):
            relevance = []
        if len(relevance) != len(items) or not all(0 <= each <= MOST for each in relevance):
            raise UserError(
                f"{record.place} has {len(items)} items and the label {given!r:.60}; give a list "
                f"of {len(items)} numbers from 0 to {MOST:g}"
            )
        query = " ".join(self.strings(record))
        return {"place": record.place, "question": query, "choices": items, "label": relevance}

    def infer_options(self, examples: Sequence[Example]) -> tuple[dict[str, Any], list[str]]:
        """Nothing is left open."""
        return {}, []

    def placeholder_label(self, record: Record, labels: Labels) -> Any:
        """No item is relevant."""
        return [0.0] * len(self.items(record))

    def rows(self, example: Example, encoded: Texts, layout: Layout, labels: Numbers) -> list[Row]:
        """One row of [C, L] with the targets 0 ... C - 1, at weights that sum to 1."""
        if not example["question"]:
            encoded = [Encoded(np.zeros(0, np.int32), np.zeros(1, np.int32)), *encoded[1:]]
        (row,) = super().rows(example | {"label": 0}, encoded, layout, labels)
        weights = targets_of(example["label"])
        targets = np.arange(layout.choices, dtype=np.int32)
        weights = np.pad(weights, (0, layout.choices - len(weights)))
        return [row | {"targets": targets, "weights": weights}]

    def abstract_row(self, layout: Layout) -> Row:
        """See `Task`."""
        nothing = Encoded(np.zeros(1, np.int32), np.zeros(2, np.int32))
        texts = [nothing] * (layout.choices + 1)
        return self.rows({"question": "", "label": [0.0] * layout.choices}, texts, layout, {})[0]

    def predict(self, example: Example, outputs: Sequence[Outputs], labels: Labels) -> Prediction:
        """The numbers of the items, the best first."""
        count = len(example["label"])
        log_probs = np.asarray(outputs[0]["log_probs"][0], np.float64)[:count]
        nats = float(targets_of(example["label"]) @ outputs[0]["nats"][:count])
        order = np.argsort(-log_probs, kind="stable")
        return {
            "label": example["label"],
            "predicted": order.tolist(),
            "confidence": float(np.exp(log_probs[order[0]])),
            "nats": nats,
        }

    def is_correct(self, prediction: Prediction) -> bool:
        """Whether no item is more relevant than the first."""
        relevance = prediction["label"]
        return bool(relevance[prediction["predicted"][0]] == max(relevance))

    def label_pairs(self, predictions: Predictions) -> list[tuple[Any, Any]]:
        """The number of the most relevant item, and of the first."""
        return [(str(np.argmax(p["label"])), str(p["predicted"][0])) for p in predictions]

    def metric_inputs(self, predictions: Predictions, labels: Labels) -> np.ndarray:
        """What `METRICS` need, [N, 4]."""
        rows = []
        for each in predictions:
            found = [ndcg(each["label"], each["predicted"], cut) for cut in CUTS]
            rows.append([*found, self.is_correct(each), each["nats"]])
        return np.array(rows)

    def report(self, predictions: Predictions, labels: Labels) -> str:
        """What NDCG the order of the source has."""
        given = [
            [ndcg(p["label"], range(len(p["label"])), cut) for cut in CUTS] for p in predictions
        ]
        means = zip(CUTS, np.mean(given, axis=0), strict=True)
        return f"as listed: {', '.join(f'NDCG@{cut} {mean:.4f}' for cut, mean in means)}\n"
