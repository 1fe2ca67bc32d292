"""Times attention on a GPU: softmax against torch's flash attention, and others against softmax.

Command  pip install -e ".[gpu]", with a build of torch for the GPU
         python experiments/attention_gpu.py            (less than eight minutes)
         python experiments/attention_gpu.py --tiny     the same on any device, of a size that
                                                        proves that it runs and measures nothing
Writes   experiments/results/attention_gpu.json, unless --tiny

Forward and backward, causal, bfloat16, as `attend` chooses by itself: cuDNN for the softmax, blocks
of queries for sigmoid and entmax15; torch's is `scaled_dot_product_attention` restricted to its
flash kernel. All take turns, and ratios are medians of ratios within a turn. The goals are 1 for
torch over the softmax, and at most 2 for entmax15 over the softmax. Without torch its row is null.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable

# JAX else takes most of the GPU's memory, of which torch needs its part.
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp

from experiments.timing import interleaved, median_ratio, medians
from lm.attention import Mask, attend
from lm.experiment.provenance import commit, versions

SHAPE, TINY = (8, 4096, 16, 128), (1, 256, 2, 32)
OURS = ("softmax", "sigmoid", "entmax15")
ROUNDS = 30


def ours(weighting: str, shape: tuple[int, ...]) -> Callable[[], object]:
    """The forward and backward pass of `attend`."""

    def both(query, key, value, grads):
        def attention(query, key, value):
            return attend(query, key, value, mask=Mask(causal=True), weighting=weighting)

        context, gradient = jax.vjp(attention, query, key, value)
        return context, gradient(grads)

    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    compiled = jax.jit(both).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def theirs(shape: tuple[int, ...]) -> Callable[[], object] | None:
    """The same by torch; None where it is not installed, or sees no GPU where JAX has one."""
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return None
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return None
    batch, length, heads, size = shape
    device = "cuda" if on_gpu else "cpu"
    of_heads = batch, heads, length, size
    query, key, value, grads = (
        torch.randn(of_heads, dtype=torch.bfloat16, device=device) for _ in range(4)
    )
    inputs = [each.requires_grad_() for each in (query, key, value)]

    def run() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            context = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True
            )
        torch.autograd.grad(context, inputs, grads)
        if on_gpu:
            torch.cuda.synchronize()

    return run


def main() -> int:
    """Prints the row, and writes it with the commit and versions."""
    tiny = "--tiny" in sys.argv[1:]
    if not tiny and jax.default_backend() != "gpu":
        print("attention_gpu.py: JAX finds no GPU; --tiny runs the same on a CPU", file=sys.stderr)
        return 2
    shape, rounds = (TINY, 3) if tiny else (SHAPE, ROUNDS)
    functions = {name: ours(name, shape) for name in OURS}
    if (rival := theirs(shape)) is not None:
        functions["torch_flash"] = rival
    interleaved(functions, 2)  # the first calls are not timed
    times = interleaved(functions, rounds)
    flash = times.get("torch_flash")
    result = {
        "commit": commit(),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "shape": shape,
        "milliseconds": {name: round(1e3 * each, 3) for name, each in medians(times).items()},
        "torch_over_softmax": round(median_ratio(flash, times["softmax"]), 3) if flash else None,
        "over_softmax": {
            name: round(median_ratio(times[name], times["softmax"]), 3) for name in OURS[1:]
        },
    }
    print(json.dumps(result, indent=2))
    if not tiny:
        path = ROOT / "experiments" / "results" / "attention_gpu.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
