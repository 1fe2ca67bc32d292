"""Measures what decoding can save: prompts that begin alike, and keys without weight.

Command  python experiments/decoding_savings.py [prefix] [support]
         (three minutes on 2 cores)
Writes   experiments/results/decoding_savings.json, the parts that were measured

prefix     `read_prompts` for 8 prompts of 480 tokens that share 448, against reading all of them.
support    A decoding step of a model with sparse attention over a long cache, with contexts from
           the blocks of 32 keys that have weight alone, against contexts from all keys.
           The caches hold random keys, by which scores have the standard deviation that is named.

In turns, medians over rounds of ratios of processor time, which depends less on what else runs.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import default
from experiments.timing import interleaved, median_ratio
from lm.attention.block_scores import block_scores
from lm.config import override
from lm.experiment.provenance import commit, versions
from lm.generation.decode import next_token_log_probs
from lm.generation.prefill import forward, read_prompts
from lm.generation.prompts import Prompts, pad_prompts, prompt_batch
from lm.training.build_model import build_model

ROUNDS, STEPS = 5, 8
Patches = Mapping[str, Callable[..., Any]]
KEYS, CHUNK = 32, 16  # keys in a block, blocks gathered at a time


def processor(function: Callable[[], object]) -> float:
    """Processor seconds of all threads, of one call."""
    start = time.process_time()
    jax.block_until_ready(function())
    return time.process_time() - start


def ratio(slow: Callable[[], object], fast: Callable[[], object]) -> float:
    """How many times as fast one is as the other."""
    functions = {"slow": slow, "fast": fast}
    for function in functions.values():
        jax.block_until_ready(function())
    found = interleaved(functions, ROUNDS, processor)
    return median_ratio(found["slow"], found["fast"])


def made(vocab_size: int, **keys: Any) -> tuple[Any, Any]:
    """A model with random weights, and these."""
    model = build_model(override(default.get_config(), keys), vocab_size)
    batch = prompt_batch(jnp.zeros((1, 4), int), jnp.arange(4)[None])
    init = jax.jit(lambda key: model.init(key, batch, False, method="loss")["params"])
    return model, init(jax.random.key(0))


def prefix() -> dict[str, Any]:
    """Prompts that begin alike, of 8 lengths."""
    keys = {"model.d_model": 256, "model.max_seq_len": 512}
    model, params = made(256, **keys)
    draw, found = np.random.default_rng(0), {}
    for shared, rest in ((448, 32), (256, 224), (64, 416)):
        start = draw.integers(0, 256, shared)
        prompts = [np.append(start, draw.integers(0, 256, rest - row)) for row in range(8)]
        padded = pad_prompts(model, prompts, None, 8, 8, False)

        def read(shared: int, padded: Prompts = padded) -> Callable[[], Any]:
            run = jax.jit(lambda params, padded: read_prompts(model, params, padded, shared))
            return lambda: run(params, padded)

        whole, once = read(0), read(shared)
        difference = float(jnp.max(jnp.abs(whole()[0] - once()[0])))
        times = ratio(whole, once)
        found[f"{shared}_of_{shared + rest}"] = {"times_as_fast": times, "difference": difference}
        print(
            f"prefix: {shared} of {shared + rest} tokens shared: {times:.2f} times as fast, "
            f"hidden states differ by at most {difference:.1e}",
            flush=True,
        )
    return found


def gathered_product(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Weights [B, G, R, 1, S] and values [B, G, S, K] to contexts [B, G, R, 1, K], from the blocks
    of keys that have weight; S is a multiple of their size.
    """
    b, g, r, _, s = weights.shape
    blocks = s // KEYS
    w = weights.reshape(b, g, r, blocks, KEYS)
    v = value.reshape(b, g, blocks, KEYS, -1)
    used = jnp.any(w != 0, axis=(2, 4))
    order = jnp.argsort(~used, axis=-1)
    order = jnp.pad(order, ((0, 0), (0, 0), (0, -blocks % CHUNK)))
    number = jnp.max(jnp.sum(used, axis=-1))

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, context = state
        chosen = jax.lax.dynamic_slice_in_dim(order, first, CHUNK, axis=2)
        some = jnp.take_along_axis(w, chosen[:, :, None, :, None], axis=3)
        real = first + jnp.arange(CHUNK) < blocks
        some = jnp.where(real[:, None], some, 0.0)
        values = jnp.take_along_axis(v, chosen[:, :, :, None, None], axis=2)
        return first + CHUNK, context + jnp.einsum("bgrns,bgnsk->bgrk", some, values)

    start = jnp.zeros((), jnp.int32), jnp.zeros((b, g, r, v.shape[-1]), value.dtype)
    _, context = jax.lax.while_loop(lambda state: state[0] < number, add, start)
    return context[:, :, :, None]


def gathered_context(apply, queries, keys, shared, fixed, start, first_key) -> jax.Array:
    """As `lm.attention.attend._context`, of one query and without mixing."""
    query, value = queries[0], keys[1]
    learned, mask = shared[0], fixed[0]
    scores = block_scores(queries, keys, shared, mask, start, first_key)
    visible = mask.visible(start, query.shape[3], first_key, value.shape[2])
    weights = apply(scores, visible, **learned).astype(value.dtype)
    return gathered_product(weights.reshape(*query.shape[:4], -1), value)


def support() -> dict[str, Any]:
    """Steps over a long cache, with and without keys that have no weight."""
    gathered = {"attend._context": gathered_context}
    cases = [(weighting, 8192, 2.0) for weighting in ("sparsemax", "entmax15", "top_k")]
    cases.append(("entmax15", 2048, 2.0))
    return {
        name_of(*case): compare_steps("support", *case, slow={}, fast=gathered) for case in cases
    }


def name_of(weighting: str, length: int, deviation: float) -> str:
    """A case, in the results."""
    return f"{weighting}, {length} keys, scores deviate by {deviation}"


def compare_steps(
    part: str, weighting: str, length: int, deviation: float, slow: Patches, fast: Patches
) -> dict[str, float]:
    """Steps at the end of a cache of random keys, with the functions of `lm.attention` replaced."""
    keys = {"model.d_model": 256, "model.position_embedding": "rotary", "model.qk_norm": True}
    keys |= {"attention.weighting": weighting, "model.max_seq_len": length}
    model, params = made(256, **keys)
    zero = jnp.zeros(1, jnp.int32)
    prompts = Prompts(zero[None], zero, jnp.ones((1, length), bool))

    def first(params: Any) -> Any:
        return forward(model, params, None, prompts, prompts.inputs, jnp.zeros((), jnp.int32))[1]

    draw = np.random.default_rng(0)
    cache = jax.tree.map(
        lambda x: jnp.asarray(deviation * draw.normal(size=x.shape), x.dtype),
        jax.eval_shape(first, params),
    )
    log_probs = {}

    def decode(name: str, patches: Patches) -> Callable[[], Any]:
        def step(params: Any, cache: Any, token: jax.Array) -> Any:
            place = jnp.asarray(length - 1, jnp.int32)
            with replaced(patches):  # while it is traced
                hidden, cache = forward(model, params, cache, prompts, token[:, None], place)
            found = next_token_log_probs(model, params, hidden[:, -1])
            return jnp.argmax(found, -1).astype(jnp.int32), cache, found

        run, state = jax.jit(step, donate_argnums=1), [jax.tree.map(jnp.copy, cache)]

        def several() -> jax.Array:
            token = zero
            for _ in range(STEPS):
                token, state[0], log_probs[name] = run(params, state[0], token)
            return token

        return several

    times = ratio(decode("slow", slow), decode("fast", fast))
    difference = float(jnp.max(jnp.abs(log_probs["slow"] - log_probs["fast"])))
    print(
        f"{part}: {name_of(weighting, length, deviation)}: a step is {times:.2f} times as fast, "
        f"log-probabilities differ by at most {difference:.1e}",
        flush=True,
    )
    return {"times_as_fast": times, "difference": difference}


@contextlib.contextmanager
def replaced(patches: Patches) -> Iterator[None]:
    """Replaces functions of modules of `lm.attention` by others."""
    before = {}
    for name, function in patches.items():
        module, _, own = name.partition(".")
        module = importlib.import_module(f"lm.attention.{module}")
        before[module, own] = getattr(module, own)
        setattr(module, own, function)
    yield
    for (module, own), function in before.items():
        setattr(module, own, function)


def main() -> None:
    """Measures and writes the parts that are asked for."""
    parts = {"prefix": prefix, "support": support}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(parts), help=", ".join(parts))
    options = parser.parse_args()
    written = ROOT / "experiments" / "results" / "decoding_savings.json"
    for name in options.parts:
        about = {"commit": commit(), "versions": versions(), "device": jax.devices()[0].device_kind}
        measured = parts[name]() | about | {"cores": len(os.sched_getaffinity(0))}
        results = (json.loads(written.read_text()) if written.exists() else {}) | {name: measured}
        written.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
