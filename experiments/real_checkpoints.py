"""Checks real checkpoints against published figures: MiniLM's documented cosines, and what an
ALBERT says of hidden atoms in a reaction, and how far that is from transformers, where installed.

Command  python experiments/real_checkpoints.py
Writes   experiments/results/real_checkpoints.json

Both lie in archives on PyPI (`experiments/archives.py`).
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from experiments.archives import fetch
from lm.checkpoints.hf import open_checkpoint, with_checkpoint_model
from lm.checkpoints.init_params import pretrained_params
from lm.checkpoints.pretrained import open_pretrained
from lm.evaluation.embed import embed
from lm.experiment.provenance import commit, versions
from lm.model.transformer import Batch
from lm.training.program import build_program

# Hugging Face's documentation of sentence similarity, with all-MiniLM-L6-v2.
SENTENCES = (
    "That is a happy person",
    "That is a happy dog",
    "That is a very happy person",
    "Today is a sunny day",
)
COSINES = (0.69458, 0.94292, 0.25688)
# An isopropyl sulfide takes the place of a fluorine.
REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
ATOM = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.")


def load(folder: pathlib.Path):
    """Config, model and parameters of a checkpoint."""
    checkpoint = open_checkpoint(f"hf:{folder}")
    config = default.get_config()
    config.init_from = f"hf:{folder}"
    config = checkpoint.with_model(config)
    program = build_program(config, config.data.vocab_size)
    params, origin = pretrained_params(program, config, jax.random.key(0))
    print(origin)
    return config, program.model, params


def rows(ids: list[list[int]]) -> tuple[Batch, np.ndarray]:
    """A padded batch of one document a row, and where it is real."""
    length = max(map(len, ids))
    inputs = jnp.array([row + [0] * (length - len(row)) for row in ids], jnp.int32)
    real = jnp.array([[1] * len(row) + [0] * (length - len(row)) for row in ids], jnp.int32)
    places = jnp.broadcast_to(jnp.arange(length), inputs.shape)
    return Batch(inputs, inputs, real.astype(jnp.float32), real, places), np.asarray(real)


def cosines(folder: pathlib.Path) -> dict:
    """Of the first sentence with the others: what `run.py embed --normalize` makes of them."""
    config = default.get_config()
    config.init_from, config.objective = f"hf:{folder}", "masked"
    run = open_pretrained(with_checkpoint_model(config), headless=True)
    vectors = embed(run, SENTENCES, "mean", normalize=True).vectors
    found = [float(x) for x in vectors[1:] @ vectors[0]]
    for text, ours, documented in zip(SENTENCES[1:], found, COSINES, strict=True):
        print(f"  {ours:.5f} (documented {documented:.5f})  {SENTENCES[0]} / {text}")
    error = max(abs(a - b) for a, b in zip(found, COSINES, strict=True))
    print(f"  largest difference {error:.1e}")
    return {"cosines": found, "documented": list(COSINES), "largest_difference": error}


def reaction(folder: pathlib.Path) -> dict:
    """Every atom and bond hidden in its turn: what does the model put there?"""
    _, model, params = load(folder)
    words = (folder / "vocab.txt").read_text().split("\n")
    tokens = ["[CLS]", *ATOM.findall(REACTION), "[SEP]"]
    ids = [words.index(token) for token in tokens]
    mask, hidden = words.index("[MASK]"), range(1, len(ids) - 1)
    batch, _ = rows([[mask if i == place else x for i, x in enumerate(ids)] for place in hidden])
    log_probs = np.asarray(model.apply({"params": params}, batch, method="log_probs"))
    own = np.array([log_probs[row, place] for row, place in enumerate(hidden)])
    right = own.argmax(-1) == ids[1:-1]
    print(f"  {REACTION}")
    shown = []
    arrow = tokens.index(">>")
    for place in (6, arrow, arrow + 6, arrow + 9, len(ids) - 2):
        likeliest = own[place - 1].argsort()[::-1][:3]
        guesses = [(words[i], round(float(np.exp(own[place - 1, i])), 4)) for i in likeliest]
        shown.append({"place": place, "token": tokens[place], "guesses": guesses})
        told = ", ".join(f"{word} {share:.1%}" for word, share in guesses)
        print(f"  token {place} is {tokens[place]!r:8} model: {told}")
    nats = float(-np.mean([own[i, x] for i, x in enumerate(ids[1:-1])]))
    print(
        f"  {right.sum()} of {right.size} hidden tokens are its first choice; {nats:.4f} nats each"
    )
    found = {"reaction": REACTION, "right": int(right.sum()), "tokens": int(right.size)}
    found |= {"nats_per_token": nats, "shown": shown}
    difference = from_transformers(folder, batch, log_probs)
    return found | ({} if difference is None else {"from_transformers": difference})


def from_transformers(folder: pathlib.Path, batch: Batch, log_probs: np.ndarray) -> float | None:
    """The largest difference of a log-probability from transformers; None where it is missing."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError:
        return None
    # The same weights, whose pickle transformers does not read with every version of torch.
    from lm.checkpoints.hf.tensors import open_tensors

    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig.from_pretrained(folder)).eval()
    tensors = open_tensors(folder).items()
    state = {k: torch.tensor(v[(slice(None),) * len(v.shape)]) for k, v in tensors}
    missing, _ = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name], missing
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(np.array(batch.inputs, np.int64))).logits
    difference = float(np.abs(torch.log_softmax(logits, -1).numpy() - log_probs).max())
    print(f"  largest difference of a log-probability from transformers: {difference:.1e}")
    return difference


def main() -> None:
    """Fetches, computes, prints and writes."""
    result = {"minilm": cosines(fetch("minilm")), "albert": reaction(fetch("albert"))}
    result |= {"commit": commit(), "versions": versions(), "device": jax.devices()[0].device_kind}
    written = ROOT / "experiments" / "results" / "real_checkpoints.json"
    written.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
