"""Measures what decoding can save: prompts that begin alike, keys without weight, tokens that are
screened out.

Command  python experiments/decoding_savings.py [prefix] [support] [screening] [--folder=DIR]
         (about a minute for the first two; screening trains a model in the folder, if there is none)
Writes   experiments/results/decoding_savings.json, the parts that were measured

prefix     `read_prompts` for 8 prompts of 480 tokens that share 448, against reading all of them.
support    A decoding step of a model with sparse attention over a long cache, with contexts from
           the blocks of 32 keys that have weight alone, against contexts from all keys. The cache
           holds random keys, by which scores have the standard deviation that is named.
screening  The k largest of 32,768 logits of a trained head, exactly: from the tokens that a bound
           does not exclude, against from all of them.

In turns, medians over rounds of ratios of processor time, which depends less on what else runs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from configs import default
from experiments.timing import interleaved, median_ratio
from lm.attention import attend as attend_module
from lm.config import override
from lm.experiment.provenance import commit, versions
from lm.generation.decode import StaticModel, next_token_log_probs
from lm.generation.prefill import forward, read_prompts
from lm.generation.prompts import Prompts, pad_prompts, prompt_batch
from lm.training.build_model import build_model

ROUNDS, STEPS = 7, 8
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
    scores = attend_module.block_scores(queries, keys, shared, mask, start, first_key)
    visible = mask.visible(start, query.shape[3], first_key, value.shape[2])
    weights = apply(scores, visible, **learned).astype(value.dtype)
    return gathered_product(weights.reshape(*query.shape[:4], -1), value)


def support() -> dict[str, Any]:
    """A step over a long cache, with and without keys that have no weight."""
    found: dict[str, Any] = {}
    plain = attend_module._context
    for weighting in ("sparsemax", "entmax15", "top_k"):
        for length, deviation in ((2048, 2.0), (8192, 1.0), (8192, 2.0)):
            keys = {"model.d_model": 256, "model.position_embedding": "rotary"}
            keys |= {"attention.weighting": weighting, "model.qk_norm": True}
            model, params = made(256, **keys, **{"model.max_seq_len": length})
            prompts = Prompts(
                jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32), jnp.ones((1, length), bool)
            )

            def step(contexts: Callable[..., Any], prompts: Prompts = prompts) -> Any:
                def run(params: Any, cache: Any, token: jax.Array) -> Any:
                    attend_module._context = contexts
                    inputs, place = token[:, None], prompts.padding.shape[1] - 1
                    hidden, cache = forward(model, params, cache, prompts, inputs, place)
                    attend_module._context = plain
                    log_probs = next_token_log_probs(model, params, hidden[:, -1])
                    return jnp.argmax(log_probs, -1).astype(jnp.int32), cache, log_probs

                return jax.jit(run, donate_argnums=1)

            first = jax.jit(lambda p: forward(model, p, None, prompts, prompts.inputs, 0))
            shapes = jax.eval_shape(first, params)[1]
            draw = np.random.default_rng(0)
            cache = jax.tree.map(
                lambda x: jnp.asarray(deviation * draw.normal(size=x.shape), x.dtype), shapes
            )
            log_probs = {}

            def decode(name: str, run: Any) -> Callable[[], Any]:
                state = {"cache": jax.tree.map(jnp.copy, cache)}

                def several() -> jax.Array:
                    token = jnp.zeros(1, jnp.int32)
                    for _ in range(STEPS):
                        token, state["cache"], log_probs[name] = run(params, state["cache"], token)
                    return token

                return several

            all_, some = decode("all", step(plain)), decode("some", step(gathered_context))
            times = ratio(all_, some)
            difference = float(jnp.max(jnp.abs(log_probs["all"] - log_probs["some"])))
            name = f"{weighting}_{length}_keys_scores_{deviation}"
            found[name] = {"times_as_fast": times, "difference": difference}
            print(
                f"support: {name}: a step is {times:.2f} times as fast, log-probabilities differ "
                f"by at most {difference:.1e}",
                flush=True,
            )
    return found


def main() -> None:
    """Measures and writes the parts that are asked for."""
    parts = {"prefix": prefix, "support": support}
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=list(parts), choices=[*parts, []])
    options = parser.parse_args()
    written = ROOT / "experiments" / "results" / "decoding_savings.json"
    results = json.loads(written.read_text()) if written.exists() else {}
    for name in options.parts:
        about = {"commit": commit(), "versions": versions(), "device": jax.devices()[0].device_kind}
        results[name] = parts[name]() | about | {"cores": len(os.sched_getaffinity(0))}
        written.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
