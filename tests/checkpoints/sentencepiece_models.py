"""SentencePiece models trained on a little English, and what they are asked."""

import io
from pydoc_data.topics import topics

import sentencepiece

TEXT = [line for line in topics["specialnames"].splitlines() if line][:400]
TEXT += ['Ünïcode: the fox isn\'t "ﬁne"!'] * 3
ASKED = [
    *TEXT[:30],
    "  two  spaces,  and at the end  ",
    "The ﬁnal Ünï",
    "unknown: 漢字 ☃",
    "a\tb\nc",
    "<s> is text",
    "",
]
# How Llama's own was trained.
LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 600}
LLAMA |= {"remove_extra_whitespaces": False}


def trained(kind, **options) -> bytes:
    """The file of a model of a kind."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=options.pop("vocab_size", 300),
        model_type=kind,
        minloglevel=2,
        **options,
    )
    return model.getvalue()
