"""Every method changes nothing at first, trains what it names, and leaves the rest alone."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm.config import override
from lm.data.objectives import causal
from lm.errors import UserError
from lm.finetuning import METHODS, combine, finetuning_config, param_count, partition
from lm.finetuning.lora import Dora, Lora, RankStableLora
from lm.finetuning.merge import merge, unmerge
from lm.training.build_model import build_model
from lm.training.program import build_program
from tests.small_models import init, noisy

PROMPTING = ("prompt", "prefix")
ADDING = [name for name, method in METHODS.items() if method.adapter]
# What a method needs of the model, to find something to train there.
NEEDS = {"head": {"output.tied": False}, "softmax": {"attention.weighting": "sink"}}


def rows(batch_size=4, length=16, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 255, (batch_size, length + 1))
    ones = np.ones((batch_size, length), np.int32)
    return {"tokens": tokens.astype(np.int32), "segments": ones, "bytes": ones[:, 0]}


@pytest.fixture
def tiny(small_config):
    sizes = {"model.num_layers": 2, "model.d_model": 16, "model.num_heads": 2, "data.seq_len": 16}
    return override(small_config, sizes | {"batch_size": 4, "schedule.warmup_steps": 0})


def test_a_target_that_is_no_matrix_is_named(tiny):
    config = override(
        tiny, {"finetuning.method": "lora", "finetuning.target_modules": ("value", "querry")}
    )
    with pytest.raises(UserError, match=r"has 'querry', .* it has .*query.*; did you mean query\?"):
        build_program(config, 256)


def test_split_and_join_are_inverse_also_within_an_array():
    params = {"a": {"kernel": jnp.arange(6.0).reshape(3, 2)}, "b": jnp.ones(2), "c": jnp.zeros(1)}
    kept = {("a", "kernel"): 2, ("b",): 0, ("c",): None}
    trained, frozen = partition(params, kept.get)
    assert set(flatten_dict(trained)) == {("a", "kernel"), ("b",)}
    assert trained["a"]["kernel"].shape == (1, 2) and frozen["a"]["kernel"].shape == (2, 2)
    jax.tree.map(np.testing.assert_array_equal, combine(trained, frozen), params)


EXPECTED = {
    "head": ["head/table"],
    "norms": [".*_norm/(scale|bias)"],
    "bitfit": [".*/bias"],
    "layers": ["stack/(layer_1|layers)/.*", "stack/final_norm/.*"],
    "softmax": [".*/mechanism/sink"],
    "lora": [".*/(query|value)/lora/[ab]_kernel"],
    "rslora": [".*/(query|value)/lora/[ab]_kernel"],
    "dora": [".*/(query|value)/lora/([ab]_kernel|growth)"],
    "adapter": [".*/(attention|feed_forward)/adapter/(down|up)/(kernel|bias)"],
    "ia3": [".*/(key|value|feed_forward/out)/ia3/scale"],
    "prompt": ["inputs/prompt/vectors"],
    "prefix": [".*/attention/mechanism/prefix_(key|value)/vectors"],
    "full": [".*"],
}


def names(tree):
    return {"/".join(path) for path in flatten_dict(tree)}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_its_own_parameters_and_keeps_the_base(tiny, method, scan):
    config = override(tiny, {"model.scan": scan, **NEEDS.get(method, {})})
    base = build_program(config, 256).abstract_params
    program = build_program(override(config, {"finetuning.method": method}), 256)
    state, whole = program.abstract_state, program.abstract_params
    wanted = {
        name for name in names(whole)
        if any(re.fullmatch(pattern, name) for pattern in EXPECTED[method])
    }  # fmt: skip
    assert names(state.params) == wanted and wanted
    assert names(base) <= names(whole)
    assert bool(names(whole) - names(base)) == (method in ADDING)
    assert (names(whole) - names(base)) <= wanted
    # Frozen parameters have no moments: the two of AdamW are as large as what is trained.
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * param_count(
        state.params
    )
    if (method, scan) == ("layers", True):
        kernel = ("stack", "layers", "feed_forward", "in", "kernel")
        assert flatten_dict(state.params)[kernel].shape == (1, 16, 64)
        assert flatten_dict(state.frozen_params)[kernel].shape == (1, 16, 64)


@pytest.mark.parametrize("method", [name for name in ADDING if name not in PROMPTING])
def test_what_is_added_changes_nothing_before_training(tiny, method):
    config, batch = override(tiny, {"model.num_layers": 1}), causal(rows())
    key = jax.random.key(0)
    plain = build_model(config, 256)
    adapted = build_model(override(config, {"finetuning.method": method}), 256)
    params, own = (model.init(key, batch, method="loss")["params"] for model in (plain, adapted))
    for path, leaf in flatten_dict(params).items():
        np.testing.assert_array_equal(leaf, flatten_dict(own)[path])
    expected = plain.apply({"params": params}, batch)
    np.testing.assert_allclose(adapted.apply({"params": own}, batch), expected, atol=1e-6)


@pytest.mark.parametrize("addition", [Lora(4, 8.0), RankStableLora(4, 8.0), Dora(4, 8.0)])
def test_merged_kernels_do_what_layer_and_addition_do(addition):
    layer = nn.Dense(6, name="query")
    x = jax.random.normal(jax.random.key(0), (3, 5))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            with nn.intercept_methods(addition):
                return nn.Dense(6, name="query")(x)

    params = noisy(Model().init(jax.random.key(1), x)["params"])["query"]
    merged = addition.merged(("query",), params)
    assert set(merged) == {"kernel", "bias"}
    expected = Model().apply({"params": {"query": params}}, x)
    np.testing.assert_allclose(layer.apply({"params": merged}, x), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3", "lora+ia3"])
def test_a_merged_model_is_a_plain_one_that_computes_the_same(tiny, method):
    config, batch = (
        override(tiny, {"model.num_layers": 1, "finetuning.method": method}),
        causal(rows()),
    )
    adapted, plain = (
        build_model(config, 256),
        build_model(override(tiny, {"model.num_layers": 1}), 256),
    )
    params = init(adapted, batch)
    merged = merge(config, params)
    hidden = adapted.apply({"params": params}, batch)
    np.testing.assert_allclose(plain.apply({"params": merged}, batch), hidden, atol=2e-4)
    trained, _ = partition(params, finetuning_config(config).frozen_layers)
    if method == "dora":
        with pytest.raises(UserError, match="cannot be taken out"):
            unmerge(config, merged, trained)
    else:
        again = unmerge(config, merged, trained)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, params)


def test_what_no_matrix_holds_is_not_merged(tiny):
    with pytest.raises(UserError, match="prompt adds cannot be merged"):
        merge(override(tiny, {"finetuning.method": "prompt"}), {})
