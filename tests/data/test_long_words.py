"""Words that are no words, such as base64 or a genome, are cut alike by all trained tokenizers."""

import random
import string

import pytest

from lm.data import DataConfig, prepare
from lm.data.make_tokenizer import LONGEST_WORD, make_tokenizer, warn_of_long_words

SIZES = {"bpe": 320, "wordpiece": 600, "unigram": 295}
PLAIN = ["some plain words, and some more of them to learn from\n" * 3]


@pytest.mark.parametrize("name", SIZES)
def test_no_token_spans_the_cut_of_a_long_word(name):
    word = "ab" * 1200
    made = make_tokenizer(name, SIZES[name], [*PLAIN, word])
    (encoded,) = made.encode_batch([word])
    ends = set(encoded.byte_lengths.cumsum().tolist())
    assert ends >= {LONGEST_WORD * n for n in range(1, len(word) // LONGEST_WORD + 1)}
    assert made.decode(encoded.ids) == word


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_word_of_150_000_letters_neither_ends_nor_holds_up_the_training(name):
    draw = random.Random(0)
    word = "".join(draw.choices(string.ascii_letters, k=150_000))
    made = make_tokenizer(name, SIZES[name], [*PLAIN, word])
    assert made.decode(made.encode_batch([word])[0].ids) == word


def test_the_first_document_with_a_long_word_is_named_before_it_is_trained_on(capsys):
    texts = {"a": "x" * LONGEST_WORD, "b": f"y {'z' * 150_000} y", "c": "w" * 500}
    seen = warn_of_long_words(texts.items())
    assert next(seen) == texts["a"] and not capsys.readouterr().err
    assert next(seen) == texts["b"]
    assert capsys.readouterr().err.startswith("b has a word of 150,000 letters (zzzz")
    assert next(seen) == texts["c"] and not capsys.readouterr().err


def test_a_corpus_names_the_file_of_a_long_word(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"{number} {PLAIN[0]}{'q' * 300 * (number == 7)}")
    data = DataConfig(
        source=f"files:{tmp_path}/*.txt",
        tokenizer="bpe",
        vocab_size=300,
        seq_len=16,
        validation_fraction=0.1,
    )
    prepare(data, tmp_path / "cache")
    assert "7.txt has a word of 300 letters" in capsys.readouterr().err
