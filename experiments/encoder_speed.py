"""How fast is a pretrained encoder's forward pass here, against transformers in torch?

Command  python experiments/encoder_speed.py
Writes   experiments/results/encoder_speed.json

MiniLM (`experiments/archives.py` fetches it) on 256 sentences of 64 tokens, float32 on a CPU,
hidden states only. Both compute the same 32 sentences at a time, in turns, so that a noisy machine
is noisy for both; the ratio is the median over rounds.
"""

import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.timing import interleaved, median_ratio, medians
from lm.allocator import keep_freed_memory

SENTENCES, LENGTH, BATCH, ROUNDS = 256, 64, 32, 3


def main() -> None:
    """Measures both in turns, checks that they agree, prints and writes."""
    keep_freed_memory()
    import jax
    import torch
    import transformers

    from experiments.archives import fetch
    from experiments.real_checkpoints import load, rows
    from lm.provenance import commit, versions

    folder = fetch("minilm")
    _, model, params = load(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    ids = np.random.default_rng(0).integers(1000, 20000, (SENTENCES, LENGTH))
    batches = [rows(ids[i : i + BATCH].tolist())[0] for i in range(0, SENTENCES, BATCH)]
    tensors = [torch.tensor(np.array(batch.inputs, np.int64)) for batch in batches]
    real = torch.ones_like(tensors[0])
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))

    def ours() -> np.ndarray:
        return np.concatenate([np.asarray(apply(params, batch)) for batch in batches])

    def of_torch() -> np.ndarray:
        with torch.inference_mode():
            found = [theirs(input_ids=x, attention_mask=real).last_hidden_state for x in tensors]
        return torch.cat(found).numpy()

    difference = float(np.abs(ours() - of_torch()).max())
    seconds = interleaved({"ours": ours, "transformers": of_torch}, ROUNDS)
    ratio, typical = median_ratio(seconds["transformers"], seconds["ours"]), medians(seconds)
    print(f"ours {typical['ours']:.2f} s, transformers {typical['transformers']:.2f} s")
    print(
        f"sentences per second over those of transformers: {ratio:.2f}; differs by {difference:.1e}"
    )
    result = {"ratio": ratio, "seconds": seconds, "largest_difference": difference}
    result |= {"commit": commit(), "versions": versions() | {"torch": torch.__version__}}
    written = ROOT / "experiments" / "results" / "encoder_speed.json"
    written.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
