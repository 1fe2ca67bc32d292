"""The Transformer sees what it may see, and its variants agree where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.objectives import causal, positions_within
from lm.model.transformer import Batch
from lm.softmax import WEIGHTINGS
from tests.attention_inputs import SEGMENTS
from tests.small_models import init, model_of

L, V = 12, 17


def rows(seed=0):
    tokens = np.random.default_rng(seed).integers(0, V, (2, L + 1)).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "segments": jnp.asarray(SEGMENTS)}


def test_causal_batches_predict_the_next_token_and_weigh_padding_zero():
    batch = causal(rows())
    np.testing.assert_array_equal(batch.targets[:, :-1], batch.inputs[:, 1:])
    np.testing.assert_array_equal(batch.weights, SEGMENTS > 0)


def test_positions_count_from_the_start_of_each_document():
    expected = [[*range(5), *range(7)], [*range(9), 0, 1, 0]]
    np.testing.assert_array_equal(positions_within(jnp.asarray(SEGMENTS)), expected)


# Every weighting is held to it in tests/attention/test_attention.py, and other architectures are
# in test_leaks.py; within the model it takes seconds each, so that some are tried always and the
# others as a slow proof.
QUICK = [("softmax", False), ("entmax15", True), ("sink", True)]
LEAKS = [(name, jit) for name in WEIGHTINGS for jit in (True, False)]


@pytest.mark.parametrize(
    ("weighting", "jit"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in LEAKS],
)
def test_later_tokens_and_other_documents_get_no_gradient(weighting, jit):
    model = model_of(V + 2 * L, **{"attention.weighting": weighting, "model.num_layers": 1})
    batch = causal(rows())
    params = init(model, batch)

    def hidden_at(embedded):
        """Row 0, position 6, as a function of every position's own word vector."""
        words = jnp.concatenate([params["embedding"][:V], embedded])
        own = batch.replace(inputs=V + jnp.arange(L)[None].repeat(2, 0) + jnp.array([[0], [L]]))
        tree = params | {"embedding": words}
        hidden = model.apply({"params": tree}, own)
        return hidden[0, 6].sum()

    gradient = jax.grad(hidden_at)
    vectors = params["embedding"][batch.inputs].reshape(-1, 16)
    seen = np.asarray((jax.jit(gradient) if jit else gradient)(vectors))
    visible = np.zeros(2 * L, bool)
    visible[5:7] = True
    assert (seen[~visible] == 0).all()
    assert (seen[visible] != 0).any(-1).all()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"model.norm_position": "post"}, marks=pytest.mark.slow),
        {"model.norm_position": "sandwich", "model.norm": "rmsnorm"},
        {"model.position_embedding": "sinusoidal", "model.activation": "relu"},
        {"model.position_embedding": "rotary", "model.activation": "swiglu", "model.scan": True},
        {"model.position_embedding": "alibi", "model.activation": "geglu", "model.num_kv_heads": 2},
        {"model.bias": False, "model.qk_norm": True, "model.head_dim": 6, "model.mlp_dim": 24},
        {"model.dropout": 0.1, "model.remat": True, "model.scan": True},
        pytest.param({"output.tied": False, "output.bias": True}, marks=pytest.mark.slow),
        pytest.param({"output.head": "mixture"}, marks=pytest.mark.slow),
        pytest.param({"model.position_embedding": "none"}, marks=pytest.mark.slow),
        {"model.position_embedding": "relative", "model.score_scale": 1.0, "model.qkv_bias": False},
        {"model.embedding_norm": True, "model.num_token_types": 2, "model.embedding_scale": 4.0},
        {"model.embedding_dim": 8, "model.head_transform": True, "model.share_layers": True},
    ],
)
def test_every_component_runs_and_gives_every_parameter_a_gradient(settings):
    model = model_of(V, **settings)
    batch = causal(rows())
    params = init(model, batch)

    def total(params):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply({"params": params}, batch, method="loss", rngs=rngs)

    loss, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(loss)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        # A shift of all keys moves every score of a row alike, so softmax gives it no gradient.
        assert "key']['bias" in name or (leaf != 0).any(), name


def test_scanned_and_unrolled_layers_agree():
    batch = causal(rows())
    unrolled = model_of(V)
    params = init(unrolled, batch)
    stack = dict(params["stack"])
    layers = [stack.pop(f"layer_{i}") for i in range(2)]
    stack["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    scanned = model_of(V, **{"model.scan": True})
    np.testing.assert_allclose(
        scanned.apply({"params": params | {"stack": stack}}, batch),
        unrolled.apply({"params": params}, batch),
        atol=1e-5,
    )


def test_every_layer_has_its_own_mechanism():
    mechanism = {"attention.mechanism": "gated", "attention.weighting": "sink"}
    scanned, unrolled = (
        init(model_of(V, **mechanism, **{"model.scan": scan}), causal(rows()))["stack"]
        for scan in (True, False)
    )
    for layer in range(2):
        own = jax.tree.map(lambda p: p.shape, unrolled[f"layer_{layer}"]["attention"]["mechanism"])
        assert own == {"gate": {"kernel": (16, 16)}, "scores": {"sink": (4,)}}
    stacked = jax.tree.map(lambda p: p.shape, scanned["layers"]["attention"]["mechanism"])
    assert stacked == {"gate": {"kernel": (2, 16, 16)}, "scores": {"sink": (2, 4)}}


def test_rematerialisation_changes_no_gradient():
    batch = causal(rows())
    params = init(model_of(V), batch)

    def gradient(model):
        return jax.grad(lambda p: model.apply({"params": p}, batch, method="loss"))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(model_of(V)),
        gradient(model_of(V, **{"model.remat": True})),
    )


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32():
    batch = causal(rows())
    model = model_of(V, **{"model.dtype": "bfloat16"})
    params = init(model, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert model.apply({"params": params}, batch).dtype == jnp.bfloat16
    nats = model.apply({"params": params}, batch, method="negative_log_likelihood")
    assert nats.dtype == jnp.float32
    exact = model_of(V).apply({"params": params}, batch, method="negative_log_likelihood")
    np.testing.assert_allclose(nats, exact, rtol=0.1, atol=0.1)


def test_the_training_loss_is_the_weighted_sum_over_positions():
    batch = causal(rows())
    model = model_of(V)
    params = init(model, batch)
    nats = model.apply({"params": params}, batch, method="negative_log_likelihood")
    total = model.apply({"params": params}, batch, method="loss")
    np.testing.assert_allclose(total, jnp.sum(nats * batch.weights), rtol=1e-6)


def test_predictions_compute_the_hidden_states_once():
    model = model_of(V, **{"model.num_layers": 8, "model.scan": False})
    batch = causal(rows())
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="loss")["params"])

    def flops(method):
        lowered = jax.jit(lambda params: model.apply({"params": params}, batch, method=method))
        return lowered.lower(params).cost_analysis()["flops"]

    assert flops("predictions") < 1.2 * flops("negative_log_likelihood")


def test_variants_of_one_seed_start_from_the_same_weights_where_shapes_allow():
    batch: Batch = causal(rows())

    def start(**settings):
        key = {"params": jax.random.key(3)}
        return model_of(V, **settings).init(key, batch, False, method="loss")["params"]

    softmax = start()
    sink = start(**{"attention.weighting": "sink"})
    untied = start(**{"output.tied": False})
    flat = dict(jax.tree_util.tree_leaves_with_path(softmax))
    for other in (sink, untied):
        for path, leaf in jax.tree_util.tree_leaves_with_path(other):
            if path in flat:
                np.testing.assert_array_equal(leaf, flat[path])
