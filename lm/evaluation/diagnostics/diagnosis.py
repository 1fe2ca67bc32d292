"""Measures the output softmax of a model: spectrum, surviving gradient, argmax, calibration."""

import functools
from typing import Any

import jax
import numpy as np

from lm.checkpoints.restored import Restored
from lm.devices.hosts import to_host
from lm.errors import UserError
from lm.evaluation.calibration import calibration
from lm.evaluation.diagnostics.argmax import direction, own_direction, token_vectors
from lm.evaluation.diagnostics.contexts import Contexts, collect_contexts
from lm.evaluation.diagnostics.gradient import surviving_shares
from lm.evaluation.diagnostics.spectrum import Spectrum, spectra, token_blocks
from lm.generation.decode import next_token_log_probs
from lm.output import OUTPUTS

GRADIENTS = 64  # contexts whose gradient is measured
TOKENS = 64  # tokens whose argmax is tested
GROUPS = 5  # groups of tokens by frequency, equally represented in the sample


def diagnose(run: Restored, sample: int) -> dict[str, Any]:
    """Spectrum, surviving gradient, tokens that are never the argmax, and calibration.

    A measurement that the head does not support is {"unavailable": reason}.

    Args:
      run: from `lm.checkpoints.restore.restore`, inside its program's mesh.
      sample: held-out contexts in the matrix of log-probabilities.

    Returns:
      The content of diagnose.json: "spectrum", "spectrum_centred" (and "spectrum_truth" for a
      synthetic language), "gradient", "argmax", "calibration".

    Raises:
      UserError: where the head predicts whole sequences, or labels.
    """
    name = run.config.output.head
    if task := run.config.task.name:
        raise UserError(
            f"diagnose measures language models; see report.txt and report.png of the workdir "
            f"for task {task}"
        )
    if OUTPUTS[name].sequence_level:
        why = "scores whole sequences; diagnose needs a head of single tokens"
        raise UserError(f"head {name} {why}")
    contexts = collect_contexts(run, sample)
    counted = calibration(contexts.confidence, contexts.correct)
    columns = counted.edges[:-1], counted.counts, counted.confidence, counted.accuracy
    # Means of empty bins are NaN, which becomes None.
    values = ([None if np.isnan(x) else x for x in column.tolist()] for column in columns)
    names = ("lower_edge", "count", "confidence", "accuracy")
    return {
        "head": name,
        "vocab_size": run.corpus.tokenizer.vocab_size,
        "d_model": contexts.hidden.shape[1],
        "contexts": len(contexts.hidden),
        **_matrix(run, contexts),
        "argmax": _argmax(run),
        "calibration": {
            "predictions": len(contexts.confidence),
            "accuracy": float(np.mean(contexts.correct)),
            "confidence": float(np.mean(contexts.confidence)),
            "expected_calibration_error": counted.error,
            "expected_by_chance": counted.chance,
            "bins": [dict(zip(names, each, strict=True)) for each in zip(*values, strict=True)],
        },
    }


def _matrix(run: Restored, contexts: Contexts) -> dict[str, Any]:
    """The spectra and the surviving gradient, from log-probabilities."""
    name = run.config.output.head
    if not OUTPUTS[name].full_support:
        why = {"unavailable": f"head {name} has probabilities of 0, whose logarithms are infinite"}
        return {"spectrum": why, "spectrum_centred": why, "gradient": why}
    model, vocab_size = run.program.model, run.corpus.tokenizer.vocab_size
    log_probs = functools.partial(next_token_log_probs, model)
    jitted = jax.jit(log_probs)
    blocks = token_blocks(
        lambda hidden: to_host(jitted(run.params, hidden)), contexts.hidden, vocab_size
    )
    whole, centred = spectra(blocks)
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
        truth = token_blocks(lambda state: language.log_probs[state], states, vocab_size)
        found["spectrum_truth"] = _plain(spectra(truth)[0])
    random = np.sqrt(contexts.hidden.shape[1] / vocab_size)
    found["gradient"] = {
        "contexts": len(shares),
        "share": float(np.mean(shares)),
        "random_share": float(min(1.0, random)),
        "shares": np.sort(shares).tolist(),
    }
    return found


def _argmax(run: Restored) -> dict[str, Any]:
    """Tests tokens of every frequency; see `lm.evaluation.diagnostics.argmax`."""
    vectors = token_vectors(run.config.output.head, run.params, run.config.output.tied)
    if vectors is None:
        why = f"head {run.config.output.head} has no linear logits"
        return {"unavailable": f"{why}, so linear programs do not apply"}
    by_count = np.argsort(-run.corpus.counts(), kind="stable")
    chance, groups = np.random.default_rng(0), []
    for group in np.array_split(by_count, GROUPS):
        sample = chance.permutation(group)[: -(-TOKENS // GROUPS)]
        never = [int(token) for token in sample if direction(vectors, token) is None]
        own = sum(own_direction(vectors, token) for token in sample)
        groups.append({"tokens": len(sample), "by_own_embedding": int(own), "never": never})
    return {
        "tokens": sum(group["tokens"] for group in groups),
        "never": sum(len(group["never"]) for group in groups),
        "by_frequency": groups,
    }


def _plain(found: Spectrum) -> dict[str, Any]:
    ranks = {"rank": found.rank, "entropy_rank": found.entropy_rank}
    return ranks | {"singular_values": found.singular.tolist()}
