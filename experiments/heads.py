"""Measures time and memory of the output heads next to the plain softmax head.

Command  python experiments/heads.py
Writes   experiments/results/heads.json and heads.png

Loss and both gradients (hidden states and parameters), float32, on the CPU: what a training step
asks of a head. "materialised" is the plain loss as one writes it, with all logits at once;
"recomputed" computes each chunk of tokens again in the backward pass; "softmax" and the others
compute chunks with the gradient in the forward pass. Cases are interleaved, so that a noisy
machine is noisy for all. A time is a median, a ratio the median over rounds of the ratio within a
round; the same of processor time (of all threads, the system's included), which a machine shared
with others disturbs less. Temporaries are those that XLA plans for the compiled function.

The picture is the crossover that the automatic rule rests on: the processor time of one softmax
head for more and more tokens, chunked and all at once.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.timing import interleaved, median_ratio, medians, seconds
from lm.devices.cpu import keep_freed_memory

TOKENS, FEATURES = 4096, 256
VOCABULARY = 32_768  # of the crossover
CHUNKS = 8  # of what is recomputed
ROUNDS = {32_768: 5, 131_072: 3}
SMALL = {
    "materialised": "materialised",
    "recomputed": "recomputed",
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
        ("softmax", "recomputed", 1.0),
        *((name, "softmax", 1.15) for name in ("softcap", "z_loss", "label_smoothing")),
        ("sigsoftmax", "softmax", 1.15),
        ("plif", "softmax", 1.15),
        ("mixture", "softmax", 4.6),
        ("entmax", "softmax", 1.6),
    ],
    131_072: [("adaptive", "softmax", 1 / 6), ("sampled", "softmax", 1 / 6)],
}
TEMPORARIES = {32_768: [("softmax", "materialised", 0.25)], 131_072: []}


def case(options, vocab_size: int, tokens: int = TOKENS):
    """A compiled function without arguments, and its temporaries in bytes.

    Args:
      options: of a head, with its name as "head"; or "materialised" or "recomputed".
      vocab_size: V.
      tokens: N.
    """
    import jax
    import jax.numpy as jnp

    from lm.output import OUTPUTS
    from lm.output.chunked import split

    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(tokens, FEATURES)), jnp.float32)
    # Words of a natural text: the k-th most frequent has a share of about 1/k.
    shares = 1.0 / np.arange(1, vocab_size + 1)
    targets = jnp.asarray(rng.choice(vocab_size, tokens, p=shares / shares.sum()), jnp.int32)
    weights, key = jnp.ones(tokens), jax.random.key(0)
    if isinstance(options, str):
        params = {"table": 0.02 * jax.random.normal(key, (vocab_size, FEATURES))}

        def at_once(table, hidden, targets, weights):
            z = hidden @ table.T
            own = jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
            return jnp.sum((jax.nn.logsumexp(z, axis=-1) - own) * weights)

        def plain_total(params, hidden, targets, weights, key):
            arrays = (hidden, targets, weights)
            if options == "materialised":
                return at_once(params["table"], *arrays)
            again = jax.checkpoint(lambda chunk: at_once(params["table"], *chunk))
            return jnp.sum(jax.lax.map(again, tuple(split(x, CHUNKS) for x in arrays)))

        total = plain_total
    else:
        options = dict(options)
        head = OUTPUTS[options.pop("head", "softmax")](vocab_size, FEATURES, **options)
        params = jax.jit(lambda: head.init(key, hidden[:1], targets[:1], method="loss"))()["params"]

        def head_total(params, hidden, targets, weights, key):
            arguments = (hidden, targets, weights)
            return head.apply(
                {"params": params}, *arguments, method="loss_sum", rngs={"softmax": key}
            )

        total = head_total

    arguments = (params, hidden, targets, weights, key)
    compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*arguments).compile()
    analysis: Any = compiled.memory_analysis()
    temporaries = analysis.temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arguments)), temporaries


def compare(cases: dict, vocab_size: int, rounds: int) -> dict:
    """Milliseconds, temporaries and ratios of all cases for a vocabulary."""
    functions, temporaries = {}, {}
    for name, options in cases.items():
        functions[name], temporaries[name] = case(options, vocab_size)
        functions[name]()
    wall, processor = measure(functions, rounds)
    return {
        "vocabulary": vocab_size,
        "milliseconds": {k: round(1e3 * t, 1) for k, t in medians(wall).items()},
        "processor_milliseconds": {k: round(1e3 * t, 1) for k, t in medians(processor).items()},
        "temporaries_mb": {k: round(size / 1e6, 1) for k, size in temporaries.items()},
        "ratios": [
            {
                "of": a,
                "to": b,
                "ratio": round(median_ratio(wall[a], wall[b]), 3),
                "processor_ratio": round(median_ratio(processor[a], processor[b]), 3),
                "limit": round(limit, 3),
            }
            for a, b, limit in LIMITS[vocab_size]
        ],
        "temporaries_ratios": [
            {"of": a, "to": b, "ratio": round(temporaries[a] / temporaries[b], 3), "limit": limit}
            for a, b, limit in TEMPORARIES[vocab_size]
        ],
    }


def measure(functions: dict, rounds: int) -> tuple[dict, dict]:
    """Seconds of every call and of the processors in it, [rounds] each, of interleaved cases."""

    def both(function):
        busy = time.process_time()
        return seconds(function), time.process_time() - busy

    found = interleaved(functions, rounds, measure=both)
    wall, processor = ({k: [pair[i] for pair in t] for k, t in found.items()} for i in (0, 1))
    return wall, processor


def crossover() -> dict:
    """Processor time of a softmax head by tokens and chunk, over that of all at once."""
    rows = []
    for tokens in (256, 512, 1024, 2048):
        blocks = [block for block in (128, 256, 512, 1024) if block < tokens]
        cases = {"at once": {"token_chunk_size": 0}} | {
            f"{n}": {"token_chunk_size": n} for n in blocks
        }
        functions = {name: case(options, VOCABULARY, tokens)[0] for name, options in cases.items()}
        for function in functions.values():
            function()
        _, processor = measure(functions, 6144 // tokens)
        base = processor["at once"]
        ratios = {
            name: round(median_ratio(t, base), 3)
            for name, t in processor.items()
            if name != "at once"
        }
        rows.append({"tokens": tokens, "ratios": ratios})
        print(json.dumps(rows[-1]), flush=True)
    return {"vocabulary": VOCABULARY, "rows": rows}


def draw(found: dict, path: pathlib.Path) -> None:
    """The crossover as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lm.output.chunking import max_logits

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for block, colour in ((128, "#88CCEE"), (256, "#44AA99"), (512, "#117733"), (1024, "#332288")):
        points = [(r["tokens"], r["ratios"].get(str(block))) for r in found["rows"]]
        points = [point for point in points if point[1] is not None]
        label = f"chunks of {block} tokens"
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    axes.axhline(1.0, color="black", linewidth=1)
    switch = max_logits() // found["vocabulary"]
    axes.axvline(switch, color="#CC6677", linestyle="--", label=f"the rule: chunks of {switch}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"tokens (of {found['vocabulary']:,} logits each)")
    axes.set_ylabel("processor time, over all at once")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def main() -> None:
    """Prints the rows and writes them with device and versions."""
    keep_freed_memory()
    from lm.experiment.provenance import commit, versions

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
        "crossover": crossover(),
    }
    folder = pathlib.Path(__file__).parent / "results"
    (folder / "heads.json").write_text(json.dumps(results, indent=2) + "\n")
    draw(results["crossover"], folder / "heads.png")


if __name__ == "__main__":
    main()
