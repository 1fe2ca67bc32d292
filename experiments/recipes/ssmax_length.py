"""Loss beyond the length of training, of softmax and SSMax in attention (2501.19399)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from configs import attention
from lm.checkpoints.restore import restore
from lm.config import Config, override
from lm.evaluation.scored_row import ScoredRow
from lm.evaluation.scoring import score_rows
from lm.experiment.reproduce.training import train_rows
from lm.training.prepare import corpus_program, prepare_corpus

SEEDS = (0, 1, 2, 3, 4)
POSITIONS = ("rotary", "none")
TRAINED, LONGER = 128, 1024  # positions
TARGETS, TEXTS = 64, 64  # the last tokens of so many texts are predicted
BASE = 50.0  # factor of the rotary base beyond the length of training


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Nats per token that SSMax has more than softmax at the length of training, and how much more
    of them it has beyond; and what the greater length costs softmax.
    """
    rows = [
        {"model.position_embedding": position, "attention.weighting": weighting}
        for position, weighting in itertools.product(POSITIONS, ("softmax", "ssmax"))
    ]
    runs = train_rows(attention.get_config("tiny"), rows, seed, folder)
    measured = iter([losses(run.workdir) for run in runs])
    found = {}
    for position, softmax, ssmax in zip(POSITIONS, measured, measured, strict=True):
        found[f"trained_{position}"] = ssmax[0] - softmax[0]
        found[f"softmax_{position}"] = softmax[1] - softmax[0]
        found[f"growth_{position}"] = (ssmax[1] - ssmax[0]) - (softmax[1] - softmax[0])
    return found


def losses(workdir: epath.Path) -> tuple[float, float]:
    """Nats per token of the same last tokens of held-out texts after contexts of both lengths; the
    rotary base of the longer one is BASE times that of training.
    """
    run = restore(workdir)
    texts = held_out(run.config)
    larger = override(run.config, {"model.rope_theta": BASE * run.config.model.rope_theta})
    short = loss(run.config, run.params, texts, TRAINED)
    return short, loss(larger, run.params, texts, LONGER)


def loss(
    config: Config, params: Mapping[str, Any], texts: Sequence[np.ndarray], length: int
) -> float:
    """Nats per token of the last TARGETS tokens of rows of `length` tokens."""
    program = corpus_program(config, prepare_corpus(config))
    places = np.arange(length - TARGETS, length)
    rows = [ScoredRow(text[-length - 1 : -1], places, text[-TARGETS:]) for text in texts]
    with jax.set_mesh(program.mesh):
        likelihoods, _ = score_rows(program, params, rows, batch_size=8)
    return -float(likelihoods.sum()) / (TARGETS * len(texts))


def held_out(config: Config) -> list[np.ndarray]:
    """Tokens of held-out texts that fill a row of the greater length alone, [LONGER + 1] each."""
    rows = prepare_corpus(override(config, {"data.seq_len": LONGER})).rows("validation")
    whole = (row["tokens"] for row in map(rows.__getitem__, range(len(rows))) if is_whole(row))
    return list(itertools.islice(whole, TEXTS))


def is_whole(row: Mapping[str, np.ndarray]) -> bool:
    """Whether one text fills a row."""
    return bool((row["segments"] == 1).all())
