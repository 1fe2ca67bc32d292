"""What does a run's output softmax do? Four measurements on one checkpoint, as plain numbers."""

import functools
from typing import Any

import jax
import numpy as np

from lm.checkpoints.restore import Restored
from lm.errors import UserError
from lm.evaluation.calibration import calibration
from lm.evaluation.diagnostics.argmax import direction, linear_words, own_direction
from lm.evaluation.diagnostics.contexts import Contexts, held_out
from lm.evaluation.diagnostics.gradient import surviving_shares
from lm.evaluation.diagnostics.spectrum import Spectrum, blocks_of_words, spectra
from lm.output import OUTPUTS
from lm.tasks.prepare import TaskData

GRADIENTS = 64  # contexts whose gradient is followed through the head
WORDS = 64  # words that are tried as argmax
FIFTHS = 5  # groups of words by frequency, that the sample takes alike


def diagnose(run: Restored, sample: int) -> dict[str, Any]:
    """Spectrum, surviving gradient, words that are never the argmax, and calibration.

    A measurement that the head does not allow is {"unknown": why}.

    Args:
      run: from `lm.checkpoints.restore.restore`, inside its program's mesh.
      sample: held-out contexts in the matrix of log-probabilities.

    Returns:
      What diagnose.json holds: "spectrum", "spectrum_centred" (and "spectrum_truth" of a synthetic
      language), "gradient", "argmax", "calibration".

    Raises:
      UserError: where the head predicts rows of words at a time, or labels.
    """
    name = run.config.output.head
    if isinstance(run.corpus, TaskData):
        raise UserError(
            f"diagnose measures language models; {run.config.task.name} has report.txt and "
            "report.png in its workdir"
        )
    if OUTPUTS[name].whole_rows:
        raise UserError(f"head {name} scores whole rows; diagnose measures heads of single words")
    contexts = held_out(run, sample)
    counted = calibration(contexts.confidence, contexts.correct)
    return {
        "head": name,
        "vocab_size": run.corpus.tokenizer.vocab_size,
        "features": contexts.hidden.shape[1],
        "contexts": len(contexts.hidden),
        **_matrix(run, contexts),
        "argmax": _argmax(run),
        "calibration": {
            "predictions": len(contexts.confidence),
            "accuracy": float(np.mean(contexts.correct)),
            "confidence": float(np.mean(contexts.confidence)),
            "expected_calibration_error": counted.error,
            "of_it_by_chance": counted.chance,
            "bins": [
                {
                    "above": low,
                    "count": int(count),
                    "confidence": _or_none(c),
                    "accuracy": _or_none(a),
                }
                for low, count, c, a in zip(
                    counted.edges[:-1].tolist(),
                    counted.count,
                    counted.confidence,
                    counted.accuracy,
                    strict=True,
                )
            ],
        },
    }


def _matrix(run: Restored, contexts: Contexts) -> dict[str, Any]:
    """What log-probabilities tell: the spectra and the surviving gradient."""
    name = run.config.output.head
    if not OUTPUTS[name].full_support:
        why = {"unknown": f"head {name} gives words no probability, so its logarithms are infinite"}
        return {"spectrum": why, "spectrum_centred": why, "gradient": why}
    model, vocab_size = run.program.model, run.corpus.tokenizer.vocab_size

    def log_probs(params: Any, hidden: jax.Array) -> jax.Array:
        found: Any = model.apply({"params": params}, hidden, method="word_log_probs")
        return found

    of_contexts = functools.partial(jax.jit(log_probs), run.params)
    whole, centred = spectra(blocks_of_words(of_contexts, contexts.hidden, vocab_size))
    shares = surviving_shares(
        lambda params, state: log_probs(params, state[None])[0],
        run.params,
        contexts.hidden[:GRADIENTS],
        contexts.targets[:GRADIENTS],
    )
    found = {"spectrum": _plain(whole), "spectrum_centred": _plain(centred)}
    language = getattr(run.corpus, "language", None)
    if language is not None:
        states = language.state(contexts.inputs)
        truth = blocks_of_words(lambda state: language.log_probs[state], states, vocab_size)
        found["spectrum_truth"] = _plain(spectra(truth)[0])
    random = np.sqrt(contexts.hidden.shape[1] / vocab_size)
    found["gradient"] = {
        "contexts": len(shares),
        "share": float(np.mean(shares)),
        "share_of_a_random_gradient": float(min(1.0, random)),
        "shares": np.sort(shares).tolist(),
    }
    return found


def _argmax(run: Restored) -> dict[str, Any]:
    """Tries words of every frequency; see `lm.evaluation.diagnostics.argmax`."""
    words = linear_words(run.config.output.head, run.params, run.config.output.tied)
    if words is None:
        why = f"head {run.config.output.head} has no linear logits"
        return {"unknown": f"{why}, so no linear program decides what its argmax can be"}
    by_count = np.argsort(-run.corpus.counts(), kind="stable")
    chance, groups = np.random.default_rng(0), []
    for fifth in np.array_split(by_count, FIFTHS):
        sample = chance.permutation(fifth)[: -(-WORDS // FIFTHS)]
        never = [int(word) for word in sample if direction(words, word) is None]
        own = sum(own_direction(words, word) for word in sample)
        groups.append({"words": len(sample), "by_own_vector": int(own), "never": never})
    return {
        "words": sum(group["words"] for group in groups),
        "never": sum(len(group["never"]) for group in groups),
        "from_frequent_to_rare": groups,
    }


def _plain(found: Spectrum) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "entropy_rank": found.entropy_rank,
        "singular_values": found.singular.tolist(),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
