"""The tokens of which log-probabilities are reported are the pieces of the text."""

import pytest

pytest.importorskip("fastapi")

from lm.data import ByteTokenizer
from lm.serving.generation import Token
from lm.serving.http.completions import _chat_logprobs, token_text
from tests.small_tokenizers import byte_fallback, byte_level, folder_of

TEXT = "yes the user in it"


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_the_texts_of_tokens_make_up_the_text_with_its_spaces(kind, tmp_path):
    tokenizer = folder_of(tmp_path, kind("<s>", "</s>"), eos_token="</s>")
    ids = tokenizer.encode_batch([TEXT])[0].ids.tolist()
    assert len(ids) == 5
    texts = [token_text(tokenizer, token) for token in ids]
    assert "".join(texts).removeprefix(" ") == TEXT
    assert texts[1:] == [" the", " user", " in", " it"]
    assert token_text(tokenizer, tokenizer.end) == "</s>"


def test_what_is_no_text_of_its_own_has_no_bytes():
    drawn = [Token(token, -1.0, []) for token in (*"é!".encode(), ByteTokenizer.end)]
    found = _chat_logprobs(ByteTokenizer(), drawn)
    assert [each["token"] for each in found] == ["token_id:195", "token_id:169", "!", "<end>"]
    assert [each["bytes"] for each in found] == [None, None, [33], None]
