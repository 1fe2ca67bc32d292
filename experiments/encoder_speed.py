"""Times a pretrained encoder's forward pass against transformers in torch.

Command  python experiments/encoder_speed.py
Writes   experiments/results/encoder_speed.json

MiniLM (`experiments/archives.py` fetches it) on 256 sentences of 64 tokens, float32 on a CPU,
hidden states only. Both compute the same 32 sentences at a time, in turns, so that a noisy machine
is noisy for both; the ratio is the median over rounds. Ours is measured twice: on one device that
has all cores, as every command has it by default, and on one device per core, each with its share
of the sentences, as with JAX_NUM_CPU_DEVICES=2 in the environment.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments.timing import interleaved, median_ratio, medians
from lm.devices.cpu import keep_freed_memory

SENTENCES, LENGTH, BATCH, ROUNDS = 256, 64, 32, 9


def main() -> None:
    """Measures both in turns, checks that they agree, prints and writes."""
    keep_freed_memory()
    import jax

    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", cores)
    import torch
    import transformers

    from experiments.archives import fetch
    from experiments.real_checkpoints import load, rows
    from lm.devices import sharding
    from lm.experiment.provenance import commit, versions

    folder = fetch("minilm")
    _, model, params = load(folder)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    ids = np.random.default_rng(0).integers(1000, 20000, (SENTENCES, LENGTH))
    batches = [rows(ids[i : i + BATCH].tolist())[0] for i in range(0, SENTENCES, BATCH)]
    tensors = [torch.tensor(np.array(batch.inputs, np.int64)) for batch in batches]
    real = torch.ones_like(tensors[0])
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))

    def on(devices: int) -> Callable[[], np.ndarray]:
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        here = jax.device_put(params, sharding.whole(mesh))
        shares = jax.device_put(batches, sharding.batch_sharding(mesh))

        def encode() -> np.ndarray:
            hidden = [apply(here, batch) for batch in shares]  # none waits for the one before
            return np.concatenate([np.asarray(part) for part in hidden])

        return encode

    def of_torch() -> np.ndarray:
        with torch.inference_mode():
            found = [theirs(input_ids=x, attention_mask=real).last_hidden_state for x in tensors]
        return torch.cat(found).numpy()

    expected = of_torch()
    functions = {f"{n} devices" if n > 1 else "1 device": on(n) for n in sorted({1, cores})}
    difference = max(float(np.abs(ours() - expected).max()) for ours in functions.values())
    seconds = interleaved({**functions, "transformers": of_torch}, ROUNDS)
    ratios = {name: median_ratio(seconds["transformers"], seconds[name]) for name in functions}
    for name, typical in medians(seconds).items():
        print(f"{name}: {typical:.2f} s")
    for name, ratio in ratios.items():
        print(f"sentences per second over those of transformers, {name}: {ratio:.2f}")
    print(f"differs by {difference:.1e}")
    result = {"ratio": ratios, "seconds": seconds, "largest_difference": difference}
    result |= {"commit": commit(), "versions": versions() | {"torch": torch.__version__}}
    written = ROOT / "experiments" / "results" / "encoder_speed.json"
    written.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
