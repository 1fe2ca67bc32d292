"""Vectors of texts are the hidden states that the model has for each text alone, pooled."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from lm.attention import Mask
from lm.checkpoints.restored import Restored
from lm.config import override
from lm.data import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.embed import check_output, embed, read_texts, write_embeddings
from lm.experiment.checkpoint_commands import run_embed
from lm.generation import prompt_batch
from lm.training.prepare import shared_program

TEXTS = ["a", "def add(a, b):", "née 🙂", "x" * 30]
END = ByteTokenizer.end


def opened(base_config, **settings):
    """A model of bytes with 32 positions."""
    small = {"model.max_seq_len": 32, "model.init_std": 0.3}
    config = override(base_config, small | settings)
    program = shared_program(config, 256, tokenizer=ByteTokenizer())
    with jax.set_mesh(program.mesh):
        params = program.init_state(jax.random.key(1)).all_params
    return Restored(config, ByteTokenizer(), program, params, 1)


@pytest.fixture
def encoder(base_config):
    return opened(base_config, **{"model.architecture": "encoder", "objective": "masked"})


def states(run, text):
    """The hidden states of a text alone, [n, D]."""
    ids = np.array([[END, *text.encode(), END]])
    batch = prompt_batch(ids, np.arange(ids.shape[1])[None])
    return np.asarray(run.program.model.apply({"params": run.params}, batch))[0]


POOLED = {
    "mean": lambda x: x.mean(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
}


def test_every_pooling_is_of_the_texts_own_states_and_padding_has_no_part(encoder):
    wanted = [states(encoder, text) for text in TEXTS]
    for pooling, pool in POOLED.items():
        some = TEXTS if pooling == "mean" else TEXTS[:3]  # of one length, to compile less
        found = embed(encoder, some, pooling, normalize=False)
        assert found.vectors.dtype == np.float32 and found.truncated == 0
        expected = np.stack([pool(each) for each in wanted[: len(some)]])
        np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=2e-5)
    unit = embed(encoder, TEXTS, "mean", normalize=True).vectors
    means = np.stack([each.mean(0) for each in wanted])
    np.testing.assert_allclose(
        unit @ unit.T, (means @ means.T) / np.outer(*[np.linalg.norm(means, axis=1)] * 2), atol=1e-5
    )


def test_what_a_decoder_learned_stands_around_its_texts(encoder):
    assert encoder.around == ByteTokenizer.specials
    config = override(encoder.config, {"model.architecture": "decoder"})
    texts = dataclasses.replace(encoder, config=config)
    assert (texts.around.before, texts.around.after) == ((END,), ())
    task = dataclasses.replace(encoder, config=override(config, {"task.name": "classification"}))
    assert task.around == ByteTokenizer.specials


def test_a_text_that_is_too_long_loses_its_last_tokens_and_is_counted(encoder):
    found = embed(encoder, ["y" * 99, "a"], "mean", normalize=False)
    assert found.truncated == 1
    np.testing.assert_allclose(found.vectors[0], states(encoder, "y" * 30).mean(0), atol=2e-5)


def test_an_encoder_decoders_vectors_are_its_encoders(base_config):
    run = opened(base_config, **{"model.architecture": "encoder_decoder", "objective": "span"})
    found = embed(run, TEXTS[:2], "mean", normalize=False).vectors
    alone = embed(run, TEXTS[1:2], "mean", normalize=False).vectors
    np.testing.assert_allclose(found[1], alone[0], atol=2e-5)

    def encoded(model):
        words = model.embedding[np.array([run.frame.encoder_input(list(TEXTS[1].encode()))])]
        places = np.arange(words.shape[1])[None]
        return model.encoder(
            model.encoder_inputs(words, places, None, False),
            places,
            Mask(segments=np.ones_like(places)),
        )

    wanted = run.program.model.apply({"params": run.params}, method=encoded)
    np.testing.assert_allclose(found[1], np.asarray(wanted)[0].mean(0), atol=2e-5)


def test_texts_come_from_lines_and_columns_and_vectors_go_to_either_kind_of_file(encoder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\n\r\ntwo\r\n")
    (tmp_path / "b.csv").write_text('text,label\n"three, four",1\n')
    names = [str(tmp_path / "a.txt"), str(tmp_path / "b.csv")]
    texts = list(read_texts(encoder.config, names))
    assert texts == ["one", "two", "three, four"]
    options = {"texts": [], "data": names, "pooling": "mean", "normalize": False}
    said = run_embed(lambda: encoder, epath.Path(tmp_path / "new" / "v.npy"), **options)
    assert said.endswith("vectors [3, 32]")
    vectors = np.load(tmp_path / "new" / "v.npy")
    write_embeddings(
        embed(encoder, texts, "mean", normalize=False), epath.Path(tmp_path / "v.jsonl")
    )
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").open()]
    assert [line["text"] for line in lines] == texts
    np.testing.assert_array_equal(np.float32([line["embedding"] for line in lines]), vectors)


def test_what_cannot_be_embedded_is_named(encoder, tmp_path):
    for arguments, message in (
        ((["a"], "median", False), r"--pooling=median is not one of mean, first"),
        ((["a"], "pooler", False), r"this model has no pooler; use mean"),
        (([], "mean", False), r"no text to embed"),
    ):
        with pytest.raises(UserError, match=message):
            embed(encoder, *arguments)
    (tmp_path / "b.csv").write_text("review,label\na,1\n")
    with pytest.raises(UserError, match=r"b.csv line 2 has no text in column 'text', only columns"):
        list(read_texts(encoder.config, [str(tmp_path / "b.csv")]))
    (tmp_path / "v.npy").write_bytes(b"")
    for name, message in (("v.npy", "there already"), ("v.csv", r"ends in .npy or .jsonl")):
        with pytest.raises(UserError, match=message):
            check_output(epath.Path(tmp_path / name))
