"""Laws by gradient: what a query may not see moves nothing, by any weighting, on either side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.attention import Mask, attend
from lm.data.objectives import positions_within
from lm.model.transformer import Batch
from lm.softmax import WEIGHTINGS
from tests.attention_inputs import SEGMENTS
from tests.small_models import init, model_of

L, V, D = 12, 17, 16
MEMORY = np.array([[1] * 3 + [2] * 8 + [0], [1] * 4 + [2] * 7 + [0]], np.int32)
QUERY = 7  # the position in row 0, and so in document 2, whose gradient is looked at


def situations():
    """Rows of one mask: an encoder's, cross-attention's, a prefix language model's, and padding."""
    whole = np.ones(L, bool)
    prefix = np.isin(np.arange(L), [0, 1, 5, 6, 7, 8, 9])
    one = np.ones(L, np.int32)
    queries = np.stack([SEGMENTS[0]] * 3 + [one])
    keys = np.stack([SEGMENTS[0], MEMORY[0], SEGMENTS[0], one])
    padding = np.stack([whole] * 3 + [np.arange(L) % 3 > 0])
    places = np.arange(L)
    seen = np.stack(
        [
            SEGMENTS[0] == 2,
            MEMORY[0] == 2,
            (SEGMENTS[0] == 2) & ((places <= QUERY) | prefix),
            places % 3 > 0,
        ]
    )
    mask = Mask(
        causal=True,
        segments=queries,
        key_segments=keys,
        padding=padding,
        prefix=np.stack([whole, whole, prefix, whole]),
    )
    return mask, seen


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_hidden_keys_get_exactly_zero_gradient_in_every_situation(weighting):
    mask, seen = situations()
    record, rng = WEIGHTINGS[weighting], np.random.default_rng(0)
    query, key, value = (rng.normal(size=(4, L, 2, 4)).astype(np.float32) for _ in range(3))
    own = {
        "weighting": weighting,
        "learned": {name: jnp.linspace(0.5, 1.5, 2) for name in record.learned},
        "rng": jax.random.key(3) if record.random else None,
        "query_chunk_size": 0,
    }

    def total(key, value):
        # Two different columns, as the gradient of one weight's sum over a row would vanish.
        return attend(query, key, value, mask=mask, **own)[:, QUERY, :, :2].sum()

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(key, value):
        moved = (np.asarray(gradient) != 0).any((-2, -1))
        assert not moved[~seen].any()
        assert (moved & seen).any(1).all()


def gradients(weighting, batch, **settings):
    """Of the state at row 0 and QUERY, by every position's word vector: memory, then inputs."""
    own = {"attention.weighting": weighting, "model.num_layers": 1}
    model = model_of(V + 4 * L, **own, **settings)
    params = init(model, batch)
    # Each position reads a word of its own, so that their gradients are told apart.
    words = V + np.arange(4 * L).reshape(2, 2, L)
    batch = batch.replace(inputs=jnp.asarray(words[1]))
    if batch.encoder_inputs is not None:
        batch = batch.replace(encoder_inputs=jnp.asarray(words[0]))

    @jax.jit
    @jax.grad
    def moved(embedding):
        return model.apply({"params": params | {"embedding": embedding}}, batch)[0, QUERY].sum()

    found = np.asarray(moved(params["embedding"]))[V:].reshape(2, 2, L, D)
    return (found != 0).any(-1)


def batch_of(memory=False, prefix=None):
    tokens = jnp.zeros((2, L), jnp.int32)
    segments = jnp.asarray(SEGMENTS)
    weights = (segments > 0).astype(jnp.float32)
    batch = Batch(tokens, tokens, weights, segments, positions_within(segments), prefix=prefix)
    if not memory:
        return batch
    of_memory = jnp.asarray(MEMORY)
    return batch.replace(
        encoder_inputs=tokens,
        encoder_segments=of_memory,
        encoder_positions=positions_within(of_memory),
    )


QUICK = ("softmax", "entmax15")
EVERY = pytest.mark.parametrize(
    "weighting",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WEIGHTINGS],
)


def check(weighting, moved, may):
    """Nothing else moves the state; and what may does, but where a sparse weighting drops it."""
    assert not moved[~may].any()
    assert moved[may].any() if WEIGHTINGS[weighting].sparse else moved[may].all()


@EVERY
def test_an_encoder_decoder_sees_its_own_document_on_both_sides_and_nothing_later(weighting):
    settings = {"model.architecture": "encoder_decoder"}
    memory, inputs = gradients(weighting, batch_of(memory=True), **settings)
    check(weighting, memory[0], MEMORY[0] == 2)
    check(weighting, inputs[0], (SEGMENTS[0] == 2) & (np.arange(L) <= QUERY))
    assert not memory[1].any() and not inputs[1].any()


@EVERY
def test_an_encoder_sees_both_sides_of_its_own_document_and_no_padding(weighting):
    _, inputs = gradients(weighting, batch_of(), **{"model.architecture": "encoder"})
    check(weighting, inputs[0], SEGMENTS[0] == 2)
    assert not inputs[1].any()


@EVERY
def test_a_prefix_is_seen_from_before_it_ends_and_nothing_later_is(weighting):
    prefix = jnp.asarray(np.isin(np.arange(L), [0, 1, 5, 6, 7, 8, 9]))[None].repeat(2, 0)
    _, inputs = gradients(weighting, batch_of(prefix=prefix))
    check(weighting, inputs[0], (SEGMENTS[0] == 2) & (np.arange(L) <= 9))
    assert not inputs[1].any()
