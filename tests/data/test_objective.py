"""Every objective is a pure function of row and key, and hides and asks what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, mlm, span
from lm.config import override
from lm.data import ByteTokenizer
from lm.data.objectives import OBJECTIVES
from lm.data.objectives.masked import Masked
from lm.data.objectives.prefix import Prefix
from lm.data.objectives.span import Span, _partition
from lm.devices import sharding
from lm.errors import UserError
from lm.experiment.train import train
from lm.training.program import build_program

BYTES = ByteTokenizer()
END, L = BYTES.end, 64
TEXT = [f"the {word} of {word}s, (x{i} + y)\n" for i, word in enumerate(["mask", "row", "key"])]


def rows(size=4, length=L, seed=0):
    """Packed documents of different lengths, some cut at a row's ends, and padding in the last."""
    rng = np.random.default_rng(seed)
    tokens = np.full((size, length + 1), END, np.int32)
    segments = np.zeros((size, length), np.int32)
    for row in range(size):
        place, number = 0, 1
        while place < length - 12 * (row == size - 1):
            text = TEXT[rng.integers(3)].encode()[: rng.integers(0, 40)]
            document = [END, *text][row % 2 and not place :] or [END]
            document = document[: length - place]
            tokens[row, place : place + len(document)] = document
            segments[row, place : place + len(document)] = number
            place, number = place + len(document), number + 1
    names = ("tokens", "segments", "bytes")
    return dict(zip(names, (tokens, segments, np.full(size, length, np.int32)), strict=True))


def batch_of(objective, rows, key=0):
    return jax.tree.map(np.asarray, jax.jit(objective)(rows, jax.random.key(key)))


OBJECTIVE = pytest.mark.parametrize(
    "objective",
    [
        Masked(BYTES, L),
        Masked(BYTES, L, whole_word=True),
        Span(BYTES, L),
        Span(BYTES, L, mask_rate=0.5, mean_span_length=6.0),
        Prefix(BYTES, L),
    ],
    ids=["masked", "whole_word", "span", "span_half", "prefix"],
)


@OBJECTIVE
def test_draws_depend_on_the_row_and_the_key_and_on_nothing_beside_it(objective):
    some = rows()
    whole = batch_of(objective, some)
    turned = {name: array[::-1] for name, array in some.items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[::-1]), whole, batch_of(objective, turned)
    )
    alone = {name: array[2:3] for name, array in some.items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[2:3], b), whole, batch_of(objective, alone)
    )
    other = batch_of(objective, some, key=1)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (whole, other)), strict=True))
    assert (whole.weights[0] != whole.weights[1]).any() or (
        whole.inputs[0] != whole.inputs[1]
    ).any()


def test_masks_hide_fifteen_percent_as_eighty_ten_ten_and_never_special_tokens():
    some = rows(size=400)
    tokens, real = some["tokens"][:, :-1], some["segments"] > 0
    batch = batch_of(Masked(BYTES, L), some)
    chosen = batch.weights > 0
    np.testing.assert_array_equal(batch.targets, tokens)
    np.testing.assert_array_equal(batch.inputs[~chosen], tokens[~chosen])
    assert not chosen[(tokens == END) | ~real].any()
    assert abs(chosen.sum() / (real & (tokens != END)).sum() - 0.15) < 0.01
    read, told = batch.inputs[chosen], tokens[chosen]
    shares = [(read == BYTES.mask).mean(), (read == told).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 243], atol=0.02)
    assert BYTES.ordinary[read[read != BYTES.mask]].all()


def test_masks_are_drawn_anew_at_every_step_and_differ_from_row_to_row():
    same = {name: array[:1] for name, array in rows().items()}
    masks = {tuple(batch_of(Masked(BYTES, L), same, key).weights[0]) for key in range(8)}
    assert len(masks) == 8


def test_whole_words_are_hidden_together():
    some = rows(size=50)
    tokens = some["tokens"][:, :-1]
    chosen = batch_of(Masked(BYTES, L, whole_word=True), some).weights > 0
    continues = ~BYTES.word_starts[tokens[:, 1:]] & (some["segments"][:, 1:] > 0)
    continues &= (some["segments"][:, 1:] == some["segments"][:, :-1]) & (tokens[:, :-1] != END)
    np.testing.assert_array_equal(chosen[:, 1:][continues], chosen[:, :-1][continues])
    assert 0.1 < chosen.sum() / BYTES.ordinary[tokens].sum() < 0.2


def restored(batch, row):
    """A row's documents, put together again from what is read and what is asked."""
    sentinels, texts = list(BYTES.sentinels), {}
    for number in np.unique(batch.encoder_segments[row]):
        if number == 0:
            continue
        read = batch.encoder_inputs[row][batch.encoder_segments[row] == number]
        here = batch.segments[row] == number
        asked, given = batch.targets[row][here], batch.inputs[row][here]
        gaps, order = {}, []
        if len(asked):
            assert asked[-1] == END and given[0] == END
            np.testing.assert_array_equal(given[1:], asked[:-1])
            for token in asked[:-1]:
                if token in sentinels:
                    order.append(token)
                    gaps[token] = []
                else:
                    gaps[order[-1]].append(token)
        assert order == sentinels[: len(order)] == [t for t in read if t in sentinels]
        assert all(gaps.values())
        whole = [gaps.get(token, [token]) for token in read]
        texts[number] = [token for part in whole for token in part]
    return texts


@pytest.mark.parametrize(
    "options", [{}, {"mask_rate": 0.5, "mean_span_length": 6.0}, {"mean_span_length": 1.0}]
)
def test_what_is_read_and_what_is_asked_make_every_document_whole(options):
    objective = Span(BYTES, L, **options)
    some = rows(size=30)
    batch = batch_of(objective, some)
    assert batch.inputs.shape == (30, objective.target_length)
    for row in range(30):
        texts = restored(batch, row)
        for number, text in texts.items():
            here = some["segments"][row] == number
            np.testing.assert_array_equal(text, some["tokens"][row, :-1][here])
        assert set(texts) == set(some["segments"][row]) - {0}
    np.testing.assert_array_equal(batch.weights, batch.segments > 0)


def test_spans_have_the_density_and_the_mean_length_asked_for():
    """Whole rows of text: nothing is lost at documents' ends."""
    length, size = 240, 200
    rng = np.random.default_rng(0)
    some = {
        "tokens": rng.integers(97, 123, (size, length + 1)).astype(np.int32),
        "segments": np.ones((size, length), np.int32),
    }
    objective = Span(BYTES, length, mask_rate=0.15, mean_span_length=4.0)
    batch = batch_of(objective, some)
    asked = batch.targets
    sentinels = np.isin(asked, BYTES.sentinels) & (batch.segments > 0)
    np.testing.assert_array_equal(sentinels.sum(1), objective.spans)
    np.testing.assert_array_equal((batch.segments > 0).sum(1), 36 + 9 + 1)


def test_spans_fall_evenly_over_a_row():
    objective = Span(BYTES, 240, mean_span_length=4.0)
    row = np.ones(240, np.int32), np.ones(240, bool)
    keys = jax.random.split(jax.random.key(0), 2000)
    hidden = np.asarray(jax.jit(jax.vmap(lambda key: objective._spans(key, *row)))(keys)) >= 0
    np.testing.assert_allclose(hidden.reshape(2000, 6, 40).mean((0, 2)), 0.15, atol=0.01)


def test_every_way_to_share_out_is_equally_likely():
    keys = jax.random.split(jax.random.key(0), 3000)
    lengths = np.asarray(jax.vmap(lambda key: _partition(key, 5, 3, 8, 4))(keys))
    ways, counts = np.unique(lengths, axis=0, return_counts=True)
    expected = [[a, b, 5 - a - b, 0] for a in (1, 2, 3) for b in range(1, 5 - a)]
    np.testing.assert_array_equal(ways, sorted(expected))
    np.testing.assert_allclose(counts / 3000, 1 / 6, atol=0.03)


def test_a_prefix_begins_its_document_and_what_follows_is_predicted():
    some = rows(size=30)
    batch = batch_of(Prefix(BYTES, L), some)
    for row in range(30):
        for number in set(some["segments"][row]) - {0}:
            here = np.flatnonzero(some["segments"][row] == number)
            size = batch.prefix[row, here].sum()
            assert 1 <= size <= len(here) and batch.prefix[row, here[:size]].all()
            np.testing.assert_array_equal(
                batch.weights[row, here], np.arange(len(here)) >= size - 1
            )
    padding = some["segments"] == 0
    assert not batch.prefix[padding].any() and not batch.weights[padding].any()


class Plain(ByteTokenizer):
    """Without special tokens but the end."""

    mask, sentinels = None, ()


def test_a_tokenizer_without_the_special_tokens_is_refused():
    with pytest.raises(UserError, match="behind a mask token, and bytes has none"):
        Masked(Plain(), L)
    with pytest.raises(UserError, match=r"cuts 3 spans .* has 0 sentinels; use bytes"):
        Span(Plain(), L)
    with pytest.raises(UserError, match=r"has 11 sentinels; set .*span_length to 7 or more"):
        Span(BYTES, 512)
    assert Span(BYTES, 512, mean_span_length=7.0).spans == 11


@pytest.mark.slow
@pytest.mark.parametrize("module", [mlm, span])
def test_accumulation_and_devices_change_no_mask(module, small_config):
    """The first losses of equal weights are equal, so what was hidden is."""
    config = module.get_config("tiny")
    config.update(batch_size=8, steps=10)
    config.data.seq_len = L
    config.model.update(num_layers=1, d_model=16, num_heads=4)
    config.schedule.warmup_steps = 2
    found = []
    for settings in ({"mesh.data": 8}, {"grad_accum_steps": 2, "mesh.data": 2, "mesh.tensor": 4}):
        program = build_program(override(config, settings), 256)
        with jax.set_mesh(program.mesh):
            state = program.init_state(jax.random.key(0))
            batch = sharding.global_batch(program.mesh, rows(size=8))
            _, metrics = program.train_step(state, batch, jax.random.key(1))
            found.append((float(metrics["train/loss"]), float(metrics["tokens"])))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_masked_run_is_measured_against_the_frequencies_of_its_words(small_config, tmp_path):
    settings = {"objective": "masked", "model.architecture": "encoder", "optimizer.name": "sgd"}
    settings |= {
        "steps": 2,
        "schedule.warmup_steps": 1,
        "evaluation.every": 0,
        "checkpoint.every": 0,
    }
    result = train(override(small_config, settings), tmp_path / "run")
    assert 0 < result["eval/unigram_nats"] < np.log(256)
    assert result["eval/nats_per_token"] > result["eval/unigram_nats"]
    assert 0 <= result["eval/accuracy"] <= 1


def test_every_objective_names_its_architecture_and_metric():
    for name, objective in OBJECTIVES.items():
        assert objective.architecture in ("decoder", "encoder", "encoder_decoder"), name
        assert objective.metric in ("eval/bits_per_byte", "eval/nats_per_token"), name
    assert default.get_config().objective in OBJECTIVES
    assert jnp.issubdtype(Masked(BYTES, L).abstract_rows(1)["tokens"].dtype, jnp.integer)
