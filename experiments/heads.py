"""How much time and memory do the output heads take, next to the plain softmax head?

Command  python experiments/heads.py
Writes   experiments/results/heads.json

Loss and both gradients (hidden states and parameters), float32, on the CPU: what a training step
asks of a head. "materialised" is the plain loss as one writes it, with all logits at once;
"softmax" and the others compute it in chunks of tokens. Cases are interleaved, so that a noisy
machine is noisy for all; times are medians, a ratio is the median over rounds of the ratio within
a round. Temporaries are those that XLA plans for the compiled function.
"""

import json
import pathlib
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lm.allocator import keep_freed_memory

TOKENS, FEATURES = 4096, 256
ROUNDS = {32_768: 5, 131_072: 3}
SMALL = {
    "materialised": None,
    "softmax": {},
    "softcap": {"cap": 30.0},
    "z_loss": {"z_loss": 1e-4},
    "label_smoothing": {"label_smoothing": 0.1},
    "sigsoftmax": {"head": "sigsoftmax"},
    "plif": {"head": "plif"},
    "mixture": {"head": "mixture", "mixtures": 4},
    "entmax": {"head": "entmax"},
}
LARGE = {
    "softmax": {},
    "adaptive": {"head": "adaptive"},
    "sampled": {"head": "sampled", "samples": 1024},
}
# Most times of the first that the second may take, and what share of its temporaries.
LIMITS = {
    32_768: [
        ("softmax", "materialised", 0.9),
        *((name, "softmax", 1.15) for name in ("softcap", "z_loss", "label_smoothing")),
        ("sigsoftmax", "softmax", 1.15),
        ("plif", "softmax", 1.15),
        ("mixture", "softmax", 4.6),
        ("entmax", "softmax", 1.6),
    ],
    131_072: [("adaptive", "softmax", 1 / 6), ("sampled", "softmax", 1 / 6)],
}
TEMPORARIES = {32_768: [("softmax", "materialised", 0.25)], 131_072: []}


def case(options, vocab_size: int):
    """A compiled function without arguments, and its temporaries in bytes."""
    import jax
    import jax.numpy as jnp

    from lm.output import OUTPUTS

    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(TOKENS, FEATURES)), jnp.float32)
    # Words of a natural text: the k-th most frequent has a share of about 1/k.
    shares = 1.0 / np.arange(1, vocab_size + 1)
    targets = jnp.asarray(rng.choice(vocab_size, TOKENS, p=shares / shares.sum()), jnp.int32)
    weights, key = jnp.ones(TOKENS), jax.random.key(0)
    if options is None:
        params = {"table": 0.02 * jax.random.normal(key, (vocab_size, FEATURES))}

        def total(params, hidden, targets, weights, key):
            z = hidden @ params["table"].T
            own = jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
            return jnp.sum((jax.nn.logsumexp(z, axis=-1) - own) * weights)
    else:
        options = dict(options)
        head = OUTPUTS[options.pop("head", "softmax")](vocab_size, FEATURES, **options)
        params = jax.jit(lambda: head.init(key, hidden[:1], targets[:1], method="loss"))()["params"]

        def total(params, hidden, targets, weights, key):
            arguments = (hidden, targets, weights)
            return head.apply({"params": params}, *arguments, method="total", rngs={"softmax": key})

    arguments = (params, hidden, targets, weights, key)
    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*arguments).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arguments)), temporaries


def compare(cases: dict, vocab_size: int, rounds: int) -> dict:
    """Milliseconds, temporaries and ratios of all cases for a vocabulary."""
    functions, temporaries = {}, {}
    for name, options in cases.items():
        functions[name], temporaries[name] = case(options, vocab_size)
        functions[name]()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {
        "vocabulary": vocab_size,
        "milliseconds": {k: round(1e3 * statistics.median(t), 1) for k, t in times.items()},
        "temporaries_mb": {k: round(size / 1e6, 1) for k, size in temporaries.items()},
        "ratios": [
            {
                "of": a,
                "to": b,
                "ratio": round(float(np.median(np.divide(times[a], times[b]))), 3),
                "limit": round(limit, 3),
            }
            for a, b, limit in LIMITS[vocab_size]
            if a in times and b in times
        ],
        "temporaries_ratios": [
            {
                "of": a,
                "to": b,
                "ratio": round(temporaries[a] / temporaries[b], 3),
                "limit": limit,
            }
            for a, b, limit in TEMPORARIES[vocab_size]
            if a in times and b in times
        ],
    }


def main() -> None:
    """Prints the rows and writes them with device and versions."""
    keep_freed_memory()
    from lm.train import commit, versions

    rows = []
    for vocab_size, cases in ((32_768, SMALL), (131_072, LARGE)):
        rows.append(compare(cases, vocab_size, ROUNDS[vocab_size]))
        print(json.dumps(rows[-1], indent=2), flush=True)
    results = {
        "device": "cpu",
        "tokens": TOKENS,
        "features": FEATURES,
        "commit": commit(),
        "versions": versions(),
        "rows": rows,
    }
    path = pathlib.Path(__file__).parent / "results" / "heads.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
