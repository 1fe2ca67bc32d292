"""Times greedy decoding against transformers in torch.

Command  python experiments/decoding.py   (pip install -e ".[parity]"; about four minutes)
Writes   experiments/results/decoding.json

128 new words after prompts of 32, for one prompt and for 8 at once, by a GPT-2 of the small size
(124 M parameters, seeded random weights, float32) on a CPU. Both have the same weights and run in
turns, so that a noisy machine is noisy for both; the ratio is the median over rounds. A word reads
every weight once, so that a pass over them that only adds them up bounds how fast it can be.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.timing import interleaved, median_ratio
from lm.devices.cpu import keep_freed_memory

PROMPT, WORDS, ROUNDS = 32, 128, 3
PASSES = 16  # over the weights, to time one
Run = Callable[[np.ndarray], np.ndarray]  # prompts [B, P] to what follows, [B, WORDS]


def compare(ours: Run, theirs: Run, read_weights: Callable[[], object], size: int) -> dict:
    """Times both and a pass over the weights, for prompts of random words."""
    prompts = np.random.default_rng(size).integers(0, 50_257, (size, PROMPT))
    same = float(np.mean(ours(prompts) == theirs(prompts)))
    seconds = interleaved(
        {
            "ours": lambda: ours(prompts),
            "transformers": lambda: theirs(prompts),
            "bound": lambda: [read_weights() for _ in range(PASSES)],
        },
        ROUNDS,
    )
    seconds["bound"] = [WORDS / PASSES * s for s in seconds["bound"]]
    ratio, reached = (
        median_ratio(seconds[name], seconds["ours"]) for name in ("transformers", "bound")
    )
    words = {
        name: statistics.median(size * WORDS / s for s in times) for name, times in seconds.items()
    }
    print(
        f"batch {size}: {words['ours']:.1f} words per second here, {words['transformers']:.1f} in "
        f"transformers, {ratio:.2f} times as fast; {reached:.0%} of what reading the weights once "
        f"per word allows; {same:.1%} of the words are the same"
    )
    return {
        "ratio": ratio,
        "share_of_bound": reached,
        "words_per_second": words,
        "seconds": seconds,
        "same_words": same,
    }


def main() -> None:
    """Measures, prints and writes."""
    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    import torch
    import transformers

    from experiments.real_checkpoints import load
    from lm.experiment.provenance import commit, versions
    from lm.generation import generate

    torch.manual_seed(0)
    gpt2: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with tempfile.TemporaryDirectory() as folder:
        gpt2.save_pretrained(folder)
        _, model, params = load(pathlib.Path(folder))

    def ours(prompts: np.ndarray) -> np.ndarray:
        words = generate(model, params, list(prompts), max_new_tokens=WORDS, temperature=0.0)
        return np.stack(list(words), axis=1)

    def theirs(prompts: np.ndarray) -> np.ndarray:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = gpt2.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=WORDS,
                max_new_tokens=WORDS,
                do_sample=False,
                pad_token_id=0,
            )
        return found[:, PROMPT:].numpy()

    total = jax.jit(lambda params: sum(map(jnp.sum, jax.tree.leaves(params))))

    def read_weights() -> object:
        return total(params).block_until_ready()

    read_weights()
    result = {f"batch_{size}": compare(ours, theirs, read_weights, size) for size in (1, 8)}
    result |= {"commit": commit(), "cores": len(os.sched_getaffinity(0)), "words": WORDS}
    result |= {
        "versions": versions()
        | {"torch": torch.__version__, "transformers": transformers.__version__}
    }
    written = ROOT / "experiments" / "results" / "decoding.json"
    written.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
