"""Methods train what they name, and nothing else, in an encoder that classifies texts and in an
encoder-decoder too; merged there, they still compute the same.
"""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm.config import override
from lm.finetuning import METHODS, combine, param_count
from lm.finetuning.merge import merge
from lm.tasks.layout import Layout
from lm.training.build_model import build_model
from lm.training.program import build_program
from tests.small_models import noisy

SIZES = {
    "model.num_layers": 1, "model.d_model": 16, "model.mlp_dim": 40, "model.num_heads": 2,
    "data.seq_len": 6, "mesh.data": 1, "batch_size": 4, "schedule.warmup_steps": 0,
    "attention.weighting": "temperature", "attention.learn": ("temperature",),
}  # fmt: skip
MODELS = {
    "classifier": {
        "task.name": "classification", "task.pooling": "mean", "model.architecture": "encoder",
        "output.tied": False,
    },
    "encoder_decoder": {
        "objective": "seq2seq", "model.architecture": "encoder_decoder", "output.tied": False,
    },
}  # fmt: skip
CASES = [
    pytest.param(model, method, marks=() if method in always else pytest.mark.slow)
    for model, always in {"classifier": ("adapter", "ia3"), "encoder_decoder": ("lora",)}.items()
    for method in METHODS
    if method != "full"
]


def adapted(config, model, method):
    """The program of a method, and rows for it."""
    layout = Layout(length=6, start=1, end=0, num_classes=3) if model == "classifier" else None
    config = override(config, {**SIZES, **MODELS[model], "finetuning.method": method})
    program = build_program(config, 11, layout=layout)
    draw = np.random.default_rng(0)
    rows = {
        name: draw.integers(1, 3, x.shape).astype(x.dtype) if "tokens" in name or name == "inputs"
        else np.ones(x.shape, x.dtype)
        for name, x in program.objective.abstract_rows(4).items()
    }  # fmt: skip
    return config, program, rows


def products(jaxpr):
    """The shapes of all matrix products of a program."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.add(equation.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= products(inner)
    return found


def kernels(tree):
    """The shapes of the blocks' matrices; batch and length are such that nothing else has them."""
    flat = flatten_dict(tree).items()
    return {leaf.shape for path, leaf in flat if path[-1] == "kernel"} | {
        leaf.shape[::-1] for path, leaf in flat if path[-1] == "kernel"
    }


@pytest.mark.parametrize(("model", "method"), CASES)
def test_frozen_matrices_get_no_gradient(small_config, model, method):
    _, program, rows = adapted(small_config, model, method)
    traced = jax.make_jaxpr(program.train_step)(program.abstract_state, rows, jax.random.key(0))
    trained, frozen = (
        kernels(program.abstract_state.params),
        kernels(program.abstract_state.frozen_params),
    )
    assert frozen - trained and not products(traced.jaxpr) & (frozen - trained)


@pytest.mark.parametrize("model", MODELS)
def test_training_everything_computes_the_gradient_of_every_matrix(small_config, model):
    _, program, rows = adapted(small_config, model, "full")
    traced = jax.make_jaxpr(program.train_step)(program.abstract_state, rows, jax.random.key(0))
    found = products(traced.jaxpr)
    for shape in kernels(program.abstract_state.params):
        assert {shape, shape[::-1]} & found


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("encoder_decoder", "lora+prefix+bitfit"),
        pytest.param("classifier", "adapter+prompt+head", marks=pytest.mark.slow),
        *(pytest.param(m, n, marks=pytest.mark.slow) for m in MODELS for n in METHODS),
    ],
)
def test_a_step_moves_what_is_trained_and_keeps_state_and_checkpoint_of_that_alone(
    small_config, model, method
):
    _, program, rows = adapted(small_config, model, method)
    state = program.init_state(jax.random.key(0))
    # Additions begin at zero, where the gradient of what multiplies them is zero as well.
    state = state.replace(params=noisy(state.params))
    before = jax.tree.map(np.asarray, (state.params, state.frozen_params))
    state, metrics = program.train_step(state, rows, jax.random.key(1))
    assert metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, state.frozen_params, before[1])
    for path, leaf in flatten_dict(state.params).items():
        # A bias that all of a row's scores share moves no weight.
        shared = path[-2:] == ("key", "bias")
        assert shared or (np.asarray(leaf) != flatten_dict(before[0])[path]).any(), path
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * param_count(state.params)
    assert (
        param_count(state.saved.params) == param_count(state.params)
        and state.saved.frozen_params is None
    )


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("encoder_decoder", "lora+ia3"),
        pytest.param("classifier", "ia3+dora", marks=pytest.mark.slow),
        *(pytest.param(m, n, marks=pytest.mark.slow) for m in MODELS for n in ("rslora", "dora")),
    ],
)
def test_merged_additions_compute_the_same(small_config, model, method):
    config, program, rows = adapted(small_config, model, method)
    state = program.init_state(jax.random.key(0))
    params = noisy(combine(state.params, state.frozen_params))
    batch = program.objective(rows, jax.random.key(0))
    layout = Layout(length=6, start=1, end=0, num_classes=3) if model == "classifier" else None
    plain = build_model(override(config, {"finetuning.method": "full"}), 11, layout=layout)

    def nats(model, params):
        return jax.jit(lambda p: model.apply({"params": p}, batch, method="loss"))(params)

    expected = nats(program.model, params)
    np.testing.assert_allclose(nats(plain, merge(config, params)), expected, rtol=1e-5)
