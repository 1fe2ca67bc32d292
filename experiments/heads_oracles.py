"""Compares losses and gradients of output heads with other packages and plain formulas.

Command  pip install -e ".[parity]"
         python experiments/heads_oracles.py
Writes   experiments/results/heads_oracles.md and heads_oracles.json

Each head's total over 64 tokens, in chunks of 16, next to an oracle in float64: optax, torch's
adaptive softmax and the entmax package where they have the loss, scipy's Bessel functions, and else
the formula written out with whole matrices. An error is the largest difference over the largest
number: of the loss, of the worst parameter's gradient, and of the hidden states'. Random heads are
compared without their draws, sampled ones with every word in the sample.
"""

import itertools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lm.output import OUTPUTS
from lm.output.hierarchical import huffman
from lm.output.sampled import sampling_line

N, D, V, CLASSES, TAGS, LENGTH = 64, 8, 40, 8, 3, 5
COUNTS = np.arange(V, 0, -1) ** 2
INTEGER_LABELS = optax.softmax_cross_entropy_with_integer_labels


def logits(params, hidden):
    """The scores h W' + b, [N, V]."""
    z = hidden @ params["table"].T
    return z + params["bias"] if "bias" in params else z


def of_logits(shape=lambda z: z):
    """The cross-entropy of shaped logits, as a loss of (params, hidden, targets)."""
    return lambda params, hidden, targets: INTEGER_LABELS(shape(logits(params, hidden)), targets)


def extras(params, hidden, targets):
    """Smoothing 0.1, z-loss 1e-3, focal 1.5 and confidence penalty 0.1, with a bias and a cap."""
    z = 9.0 * jnp.tanh(logits(params, hidden) / 9.0)
    log_p, lse = jax.nn.log_softmax(z), jax.nn.logsumexp(z, axis=-1)
    own = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    smooth = jnp.mean(-log_p, axis=-1)
    loss = -0.9 * (1.0 - jnp.exp(own)) ** 1.5 * own + 0.1 * smooth
    return loss + 1e-3 * lse**2 - 0.1 * entropy


def contexts(params, hidden):
    """Priors [N, K] and contexts [N, K, D] of the mixtures."""
    prior = jax.nn.softmax(hidden @ params["prior"]["kernel"])
    latent = jnp.tanh(hidden @ params["latent"]["kernel"] + params["latent"]["bias"])
    return prior, latent.reshape(len(hidden), -1, D)


def mixture(params, hidden, targets):
    """Mixed as probabilities."""
    prior, latent = contexts(params, hidden)
    p = jnp.einsum("nk,nkv->nv", prior, jax.nn.softmax(latent @ params["table"].T))
    return -jnp.log(p[jnp.arange(len(targets)), targets])


def mixture_of_contexts(params, hidden, targets):
    """One softmax of the mixed contexts."""
    prior, latent = contexts(params, hidden)
    return INTEGER_LABELS(jnp.einsum("nk,nkd->nd", prior, latent) @ params["table"].T, targets)


def mixtape(params, hidden, targets):
    """The priors of four contexts as products of sigmoids."""
    latent = jnp.tanh(hidden @ params["latent"]["kernel"] + params["latent"]["bias"])
    latent = latent.reshape(len(hidden), 4, D)
    gate = jnp.tanh(hidden @ params["gate"]["kernel"] + params["gate"]["bias"])
    gate = gate.reshape(len(hidden), 3, -1)
    common = hidden @ params["fork"]["kernel"] + params["fork"]["bias"]
    fork = jnp.einsum("njg,vg->njv", gate, params["gate_table"]) + common[..., None]
    s = jax.nn.sigmoid(fork + params["gate_bias"][:, 0])
    a, b, c = s[:, 0], s[:, 1], s[:, 2]
    # In the order of the tree's leaves: left left, right left, left right, right right.
    priors = jnp.stack([(1 - a) * (1 - b), a * (1 - c), (1 - a) * b, a * c], axis=1)
    z = jnp.sum(priors * jnp.einsum("nkd,vd->nkv", latent, params["table"]), axis=1)
    return INTEGER_LABELS(z, targets)


def plif(params, hidden, targets):
    """The sum of clipped logits, each times its piece's slope."""
    z, slopes = logits(params, hidden), jax.nn.softplus(params["slopes"])
    knots = np.linspace(-12.0, 12.0, 9)
    knots[[0, -1]] = -np.inf, np.inf
    pieces = [
        slope * (jnp.clip(z, low, high) - np.clip(0.0, low, high))
        for slope, (low, high) in zip(slopes, itertools.pairwise(knots), strict=True)
    ]
    return INTEGER_LABELS(sum(pieces), targets)


def gaussian(params, hidden, targets):
    """The cross-entropy of minus half the squared distances."""
    distances = jnp.sum((hidden[:, None] - params["table"]) ** 2, axis=-1)
    return INTEGER_LABELS(-distances / 2.0, targets)


def hierarchical(params, hidden, targets):
    """The product of sigmoids along each target's path."""
    tree = huffman(V, COUNTS.tobytes())
    scores = jnp.einsum("nd,nkd->nk", hidden, params["node_table"][jnp.asarray(tree.path)[targets]])
    turns = jnp.asarray(tree.turns)[targets]
    return -jnp.sum(jnp.where(turns == 0, 0.0, jnp.log(jax.nn.sigmoid(turns * scores))), axis=-1)


def class_factored(params, hidden, targets):
    """All classes' softmaxes, of 5 words each."""
    of_classes = jax.nn.log_softmax(hidden @ params["class_table"].T)
    z = (hidden @ params["table"].T).reshape(len(hidden), CLASSES, -1)
    both = (of_classes[..., None] + jax.nn.log_softmax(z)).reshape(len(hidden), -1)
    return -both[jnp.arange(len(targets)), targets]


def nce(params, hidden, targets):
    """The logistic losses of the target and of all words as noise."""
    noise = np.exp(sampling_line(V, V, "log_uniform", None)[1])
    z = logits(params, hidden) - np.log(V) - np.log(noise)
    own = jnp.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
    return -jnp.log(jax.nn.sigmoid(own)) - jnp.sum(noise * jnp.log(jax.nn.sigmoid(-z)), axis=-1)


def one_vs_all(params, hidden, targets):
    """V binary cross-entropies."""
    one_hot = jax.nn.one_hot(targets, V)
    return optax.sigmoid_binary_cross_entropy(logits(params, hidden), one_hot).sum(-1)


def squared(params, hidden, targets):
    """The mean squared error against one-hots."""
    return optax.squared_error(logits(params, hidden), jax.nn.one_hot(targets, V)).mean(-1)


def crf(params, hidden, targets):
    """Minus the log of one path's share of all paths."""
    z = logits(params, hidden)
    paths = np.array(list(itertools.product(range(TAGS), repeat=LENGTH)))

    def score(path):
        return z[jnp.arange(LENGTH), path].sum() + params["transitions"][path[:-1], path[1:]].sum()

    return (jax.nn.logsumexp(jax.vmap(score)(paths)) - score(targets))[None]


def torch_adaptive(params, hidden, targets):
    """Total and gradients by torch's adaptive softmax with the same weights."""
    import torch

    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(D, V, [6, 20], div_value=2.0).double()
    weights = {"head_table": theirs.head.weight}
    tail: Any = theirs.tail
    for i, (down, up) in enumerate(tail):
        weights |= {f"down_{i}_kernel": down.weight, f"tail_{i}_table": up.weight}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(torch.from_numpy(np.array(params[name])))
    states = torch.from_numpy(np.array(hidden)).requires_grad_()
    loss = -theirs(states, torch.from_numpy(np.array(targets))).output.sum()
    gradients = torch.autograd.grad(loss, [*weights.values(), states])
    *of_params, of_states = (gradient.numpy() for gradient in gradients)
    return loss.item(), (dict(zip(weights, of_params, strict=True)), of_states)


def package(name):
    """Total and gradients by a loss of the entmax package."""

    def through_torch(params, hidden, targets):
        import entmax
        import torch

        table = torch.from_numpy(np.array(params["table"])).requires_grad_()
        states = torch.from_numpy(np.array(hidden)).requires_grad_()
        loss = getattr(entmax, name)(states @ table.T, torch.from_numpy(np.array(targets))).sum()
        of_table, of_states = torch.autograd.grad(loss, (table, states))
        return loss.item(), ({"table": of_table.numpy()}, of_states.numpy())

    return through_torch


def scipy_bessel(params, hidden, targets):
    """Total and gradients by scipy's Bessel functions; the words are not trained."""
    from scipy.special import ive

    hidden, table = np.array(hidden), np.array(params["table"])
    k, order = np.linalg.norm(hidden, axis=-1), D / 2 - 1
    log_c = order * np.log(k) - D / 2 * np.log(2 * np.pi) - np.log(ive(order, k)) - k
    own = (table / np.linalg.norm(table, axis=-1, keepdims=True))[targets]
    ratio = ive(order + 1, k) / ive(order, k)
    of_hidden = (ratio / k)[:, None] * hidden - own
    return -(log_c + (hidden * own).sum(-1)).sum(), ({"table": 0.0 * table}, of_hidden)


def by_jax(loss):
    """An oracle's total and gradients from its loss, in float64."""

    def total(params, hidden, targets):
        return loss(params, hidden, targets).sum()

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


def cases():
    """Head, options, the oracle's name, and the oracle."""
    everything = {"bias": True, "cap": 9.0, "z_loss": 1e-3, "label_smoothing": 0.1}
    everything |= {"focal": 1.5, "confidence_penalty": 0.1}
    yield "softmax", {}, "optax", by_jax(of_logits())
    yield "softmax", everything, "formula", by_jax(extras)
    yield "mixture", {}, "formula", by_jax(mixture)
    yield "mixture_of_contexts", {}, "formula, optax", by_jax(mixture_of_contexts)
    yield "mixtape", {}, "formula, optax", by_jax(mixtape)
    shaped = of_logits(lambda z: z + jnp.log(jax.nn.sigmoid(z)))
    yield "sigsoftmax", {}, "formula, optax", by_jax(shaped)
    yield "plif", {}, "formula, optax", by_jax(plif)
    yield "adaptive", {"cutoffs": (6, 20), "divisor": 2}, "torch", torch_adaptive
    yield "hierarchical", {"counts": COUNTS}, "formula", by_jax(hierarchical)
    yield "class_factored", {"classes": CLASSES}, "formula", by_jax(class_factored)
    yield "sampled", {"samples": V}, "optax", by_jax(of_logits())
    yield "nce", {"samples": V}, "formula", by_jax(nce)
    yield "dynamic", {"samples": V}, "optax", by_jax(of_logits())
    yield "gumbel", {}, "optax", by_jax(of_logits())
    yield "sparsemax", {}, "entmax", package("sparsemax_loss")
    yield "entmax", {}, "entmax", package("entmax15_loss")
    yield "sigmoid", {}, "optax", by_jax(one_vs_all)
    yield "squared", {}, "optax", by_jax(squared)
    yield "gaussian", {}, "formula, optax", by_jax(gaussian)
    yield "von_mises_fisher", {}, "scipy", scipy_bessel
    yield "crf", {}, "every path", by_jax(crf)


def errors(name: str, options: dict, oracle, dtype) -> list[float]:
    """Of loss, parameters' gradients and hidden states' gradients."""
    words, tokens = (TAGS, LENGTH) if name == "crf" else (V, N)
    head = OUTPUTS[name](words, D, param_dtype=dtype, token_chunk_size=16, **options)
    rng = np.random.default_rng(0)
    hidden, targets = rng.normal(size=(tokens, D)).astype(dtype), rng.integers(0, words, tokens)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), hidden, targets, method="loss"))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), shapes["params"])

    def total(params, hidden):
        arguments = (hidden, targets, jnp.ones(tokens, dtype))
        rngs = {"softmax": jax.random.key(0)} if name in ("sampled", "dynamic") else {}
        return head.apply({"params": params}, *arguments, method="loss_sum", rngs=rngs)

    ours = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(params, hidden)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, hidden))
    value, (of_params, of_hidden) = oracle(*exact, targets)

    def error(found, expected) -> float:
        scale = np.abs(expected).max()
        return float(np.abs(np.asarray(found, np.float64) - expected).max() / (scale or 1.0))

    worst = jax.tree.leaves(jax.tree.map(error, ours[1][0], dict(of_params)))
    return [error(ours[0], np.asarray(value)), max(worst), error(ours[1][1], np.asarray(of_hidden))]


def main() -> None:
    """Prints the rows and writes them with the versions."""
    from lm.experiment.provenance import commit, versions

    jax.config.update("jax_enable_x64", True)
    lines = [
        "# Errors of the output heads",
        "",
        "Written by experiments/heads_oracles.py, which says what they are.",
        "",
        "| head | oracle | loss, float32 | parameters' gradients | hidden states' | loss, float64 "
        "| parameters' gradients | hidden states' |",
        "|---" * 8 + "|",
    ]
    rows = []
    for name, options, source, oracle in cases():
        single = errors(name, options, oracle, np.float32)
        double = errors(name, options, oracle, np.float64)
        title = f"{name}, all losses" if "focal" in options else name
        rows.append({"head": title, "oracle": source, "float32": single, "float64": double})
        cells = " | ".join(f"{x:.0e}" for x in (*single, *double))
        lines.append(f"| {title} | {source} | {cells} |")
        print(lines[-1], flush=True)
    folder = pathlib.Path(__file__).parent / "results"
    record = {"commit": commit(), "versions": versions(), "rows": rows}
    (folder / "heads_oracles.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "heads_oracles.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
