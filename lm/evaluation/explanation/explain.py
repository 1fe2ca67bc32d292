"""Explains a run's decision on a text: everything that is measured, as plain values."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lm.checkpoints.restored import Restored
from lm.devices.hosts import to_host
from lm.errors import UserError
from lm.evaluation.attention_weights import attention_weights
from lm.evaluation.explanation.attribution import (
    integrated_gradients,
    leave_out,
    token_parts,
    word_parts,
)
from lm.evaluation.explanation.decision import Decision, decision_of
from lm.evaluation.explanation.heads import head_statistics, rollout, support_sizes
from lm.evaluation.explanation.lens import hidden_states, logit_lens, top_tokens
from lm.evaluation.explanation.subject import Subject, find_target, read_subject, token_name

PADDING, MASK = "padding", "mask"  # what takes the place of a token that is left out
REPLACEMENTS = (PADDING, MASK)
MOST_TOKENS = 128  # of a text whose attention is written out
_CANDIDATES = 10  # that are listed

Plain = dict[str, Any]  # plain values, as JSON has them


def explain(
    run: Restored, texts: Sequence[str], target: str | None = None, replacement: str = PADDING
) -> Plain:
    """The content of explanation.json.

    Args:
      run: a decoder, or a classifier, inside its program's mesh.
      texts: one, or one for each column of config.task.text.
      target: the label or next token to explain; None: the likeliest.
      replacement: of `REPLACEMENTS`: tokens are left out of the row, which ends in padding, and the
        baseline's vectors are zeros; or the tokenizer's mask takes their place in both.

    Returns:
      "decision", "tokens", "words", "integrated_gradients", "leave_out", "logit_lens", "attention"
      by what it is, and what the run is.

    Raises:
      UserError: the run makes no single decision, or does not know the target.
    """
    subject = read_subject(run, texts)
    mask = run.tokenizer.mask if replacement == MASK else None
    if replacement == MASK and mask is None:
        raise UserError("--replacement=mask: the tokenizer has no mask; use --replacement=padding")
    decision = decision_of(run.program.model, run.params)
    states = hidden_states(decision, subject)
    lens = logit_lens(decision, subject, states)
    scores = np.asarray(decision.scores(lens))
    chosen = int(np.argmax(lens[-1])) if target is None else find_target(run, subject, target)
    names = _Names(run, subject)
    return {
        **_about(run, texts),
        "score": decision.score,
        "replacement": replacement,
        "target": {"name": names[chosen], "number": chosen, "score": float(scores[-1, chosen])},
        "decision": _decided(decision, names, lens[-1]),
        **_attributed(decision, subject, chosen, mask, float(scores[-1, chosen])),
        "logit_lens": _lens(decision, subject, states, lens, chosen, names),
        "attention": _attention(run, decision, subject),
    }


class _Names:
    """The names of candidates by their numbers."""

    def __init__(self, run: Restored, subject: Subject):
        self._run, self._labels = run, subject.labels

    def __getitem__(self, number: int) -> str:
        if self._labels:
            return self._labels[number]
        if self._run.config.task.name:
            return "value"
        return token_name(self._run.tokenizer, number)


def _about(run: Restored, texts: Sequence[str]) -> Plain:
    config = run.config
    return {
        "step": run.step,
        "texts": list(texts),
        "task": config.task.name or "language model",
        "architecture": config.model.architecture,
        "mechanism": config.attention.mechanism,
        "weighting": config.attention.weighting,
        "head": config.output.head,
    }


def _decided(decision: Decision, names: _Names, outputs: np.ndarray) -> Plain:
    """The likeliest candidates, and how many have a probability above 0."""
    if decision.score == "value":
        return {"value": float(outputs[0])}
    p = np.exp(outputs.astype(np.float64))
    best = np.argsort(-p, kind="stable")[:_CANDIDATES]
    return {
        "candidates": [{"name": names[int(i)], "probability": float(p[i])} for i in best],
        "of": len(p),
        "support": int(np.count_nonzero(p)),
        "entropy": float(-np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0))),
    }


def _attributed(
    decision: Decision, subject: Subject, target: int, mask: int | None, score: float
) -> Plain:
    """Integrated gradients of tokens and words, and by how much the score falls without each."""
    integrated = integrated_gradients(decision, subject, target, mask)
    of_tokens, of_words = token_parts(subject), word_parts(subject)
    falls = score - leave_out(decision, subject, of_tokens, target, mask)
    alike = len(of_words) == len(of_tokens)
    word_falls = falls if alike else score - leave_out(decision, subject, of_words, target, mask)
    by_token = np.zeros(len(subject.ids))
    by_token[~subject.special] = falls
    tokens = zip(
        subject.pieces, subject.ids, subject.words, integrated.tokens, by_token, strict=True
    )
    sums = of_words @ integrated.tokens
    return {
        "tokens": [
            {
                "text": text,
                "id": int(number),
                "word": int(word),
                "integrated_gradients": float(gradient),
                "leave_out": float(fall),
            }
            for text, number, word, gradient, fall in tokens
        ],
        "words": [
            {"text": text, "integrated_gradients": float(total), "leave_out": float(fall)}
            for text, total, fall in zip(subject.word_texts, sums, word_falls, strict=True)
        ],
        "integrated_gradients": {
            "score": integrated.score,
            "baseline_score": integrated.baseline,
            "sum": float(integrated.tokens.sum()),
            "residual": integrated.residual,
            "points": integrated.points,
        },
    }


def _lens(
    decision: Decision,
    subject: Subject,
    states: jax.Array,
    lens: np.ndarray,
    target: int,
    names: _Names,
) -> Plain:
    """What each layer decides, from the embedding, layer 0, to the last."""
    scores = np.asarray(decision.scores(lens))
    layers = []
    for number, (outputs, score) in enumerate(zip(lens, scores, strict=True)):
        best = int(np.argmax(outputs))
        layer: Plain = {"layer": number, "target": float(score[target]), "best": names[best]}
        if decision.score != "value":
            layer["rank"] = int(np.sum(outputs > outputs[target])) + 1
            layer["best_probability"] = float(np.exp(outputs[best]))
        if subject.labels:
            pairs = zip(subject.labels, np.exp(outputs).tolist(), strict=True)
            layer["probabilities"] = dict(pairs)
        layers.append(layer)
    found: Plain = {"layers": layers}
    if decision.model.outputs.readout == "all_positions":
        tokens, p = top_tokens(decision, subject, states)
        found["tokens"] = [[names[int(i)] for i in row] for row in tokens]
        found["probabilities"] = _rounded(p)
    return found


def _attention(run: Restored, decision: Decision, subject: Subject) -> Plain:
    """Maps, rollout and statistics of the attention, by what it is."""
    length = len(subject.ids)
    if length > MOST_TOKENS:
        why = f"a text of {length} tokens; attention is written out for at most {MOST_TOKENS}"
        return {"unavailable": why}
    batch = subject.batch(np.ones((1, length), bool))
    causal = run.config.model.architecture != "encoder" and not subject.prefix
    found = attention_weights(decision.model, run.params, batch)
    return {
        name: _of_kind(to_host(weights)[:, 0], causal, subject, decision)
        for name, weights in found.items()
    }


def _of_kind(weights: np.ndarray, causal: bool, subject: Subject, decision: Decision) -> Plain:
    rolled = rollout(weights)
    if decision.model.outputs.readout == "mean":
        seen = rolled.mean(axis=1)
    else:
        seen = rolled[:, -1 if subject.at_end else 0]
    return {
        "weights": _rounded(weights),
        "heads": head_statistics(weights, causal),
        "support": support_sizes(weights).tolist(),
        "rollout": _rounded(rolled[-1]),
        "rollout_of_decision": _rounded(seen),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """Numbers with five places behind the point, which is more than a picture shows."""
    return np.round(values.astype(np.float64), 5).tolist()
