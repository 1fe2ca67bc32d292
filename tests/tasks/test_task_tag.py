"""A sentence is tokenized as it stands in a text, and words find their pieces in it."""

import numpy as np
import pytest

from configs import default
from lm.data import ByteTokenizer
from lm.data.special_tokens import SpecialTokens
from lm.errors import UserError
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.tasks.records import Record
from tests.small_tokenizers import byte_fallback, byte_level, folder_of, names_of

SENTENCE = ["the", "Käse", "it's", "🙂", "in"]
KINDS = {
    "byte level": byte_level,
    "with a space before each": byte_fallback,
    "with a space before the first": lambda *names: byte_fallback(*names, prepend="first"),
    "without": lambda *names: byte_fallback(*names, prepend="never"),
}


def made(kind, folder):
    backend = KINDS[kind]("</s>") if kind != "bytes" else None
    return folder_of(folder, backend, eos_token="</s>") if backend else ByteTokenizer()


def tagged(tokenizer, words, decoder, length=64, separator=" ", specials=None):
    config = default.get_config()
    config.task.update(
        name="token_classification", text=("tokens",), label="tags", word_separator=separator
    )
    task = build_task(config)
    labels = {str(i): i for i in range(len(words))}
    example = {"place": "here", "words": words, "label": list(labels)}
    layout = Layout(
        length,
        0,
        tokenizer.end,
        specials=specials or tokenizer.specials,
        decoder=decoder,
        num_classes=len(words),
    )
    (encoded,) = task.tokenize([example], tokenizer)
    return task.rows(example, encoded, layout, labels)


def read(row):
    """The tokens of a row, and of its words the places and the numbers."""
    words = row["weights"] > 0
    return row["inputs"][row["segments"] > 0], row["target_positions"][words], row["targets"][words]


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
@pytest.mark.parametrize("decoder", [False, True])
def test_a_sentence_has_the_tokens_of_its_text_and_every_word_a_piece_of_its_own(
    kind, decoder, tmp_path
):
    tokenizer = made(kind, tmp_path)
    (row,) = tagged(tokenizer, SENTENCE, decoder)
    tokens, places, numbers = read(row)
    before = len(tokenizer.specials.before)
    (whole,) = tokenizer.encode_batch([" ".join(SENTENCE)])
    assert tokens[before:-1].tolist() == whole.ids.tolist()
    assert numbers.tolist() == list(range(len(SENTENCE)))
    byte = 0
    for word, place in zip(SENTENCE, places - before, strict=True):
        after = byte + len(word.encode())
        first, last = whole.spans[place]
        # Of the word itself, not only the space before it; the decoder's has seen all of it.
        assert first < after and last > byte
        assert tokenizer.decode(whole.ids[[place]]).strip()
        assert last == after if decoder else first <= byte
        byte = after + 1


def test_a_decoder_tags_where_it_has_read_the_word_and_an_encoder_where_the_word_begins(tmp_path):
    tokenizer = made("with a space before the first", tmp_path)
    for decoder, pieces in ((False, ["k", "▁the", "o"]), (True, ["e", "▁the", "n"])):
        (row,) = tagged(tokenizer, ["käse", "the", "on"], decoder)
        tokens, places, _ = read(row)
        assert names_of(tokenizer, tokens[:2]) == ["▁", "k"]
        assert names_of(tokenizer, tokens[places]) == pieces


@pytest.mark.parametrize("decoder", [False, True])
def test_a_sentence_that_is_too_long_goes_on_in_rows_of_whole_words(decoder, tmp_path):
    tokenizer = made("byte level", tmp_path)
    words = ["the", "abcdefghijkl", "in", "the", "xyz"]
    rows = tagged(tokenizer, words, decoder, length=8)
    found = [read(row) for row in rows]
    assert [numbers.tolist() for *_, numbers in found] == [[0], [1], [2, 3, 4]]
    texts = [tokenizer.decode(tokens[:-1]) for tokens, *_ in found]
    assert texts == ["the", " abcdefg", " in the xyz"]  # what is longer than a row loses its end
    assert found[1][1].tolist() == [6 if decoder else 0]
    for tokens, places, _ in found:
        assert places.max() < len(tokens) - 1


@pytest.mark.parametrize("decoder", [False, True])
def test_a_word_without_pieces_is_tagged_at_the_piece_behind_it(decoder, tmp_path):
    import tokenizers

    backend = byte_level("</s>", normalizer=tokenizers.normalizers.Replace("\x00", ""))
    tokenizer = folder_of(tmp_path, backend, eos_token="</s>")
    (row,) = tagged(tokenizer, ["\x00", "the", "\x00"], decoder, separator="")
    tokens, places, _ = read(row)
    assert names_of(tokenizer, tokens) == ["the", "</s>"]
    assert places.tolist() == [0, 0, 1]


@pytest.mark.parametrize("length", [4, 9])
def test_a_last_word_without_pieces_is_tagged_within_a_row_that_nothing_closes(length):
    opened = SpecialTokens((255,), (), (), ())  # as Llama's texts
    (row,) = tagged(ByteTokenizer(), ["abc", ""], True, length, "", opened)
    assert row["segments"].sum() == 4 and read(row)[1].tolist() == [3, 3]


def test_words_without_a_space_between_them_share_a_piece_that_holds_both(tmp_path):
    tokenizer = made("byte level", tmp_path)
    (row,) = tagged(tokenizer, ["t", "he", "i", "n"], True, separator="")
    tokens, places, _ = read(row)
    assert names_of(tokenizer, tokens[places]) == ["the", "the", "in", "in"]
    assert np.all(np.diff(places) >= 0)


def test_a_tag_of_spaces_is_none():
    config = default.get_config()
    config.task.update(name="token_classification", text=("tokens",), label="tags")
    record = Record("here", {"tokens": ["a", "b"], "tags": ["O", " "]})
    with pytest.raises(UserError, match="here: word 2 has no tag"):
        build_task(config).example(record)
