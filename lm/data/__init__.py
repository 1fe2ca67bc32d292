"""From the name of a corpus to batches of rows.

`data = DataConfig(source="stdlib", seq_len=256, validation_fraction=0.05)`, then
`corpus = prepare(data, cache="~/.cache/lm")`,
then `train_batches(corpus.rows("train"), batch_size=16, seed=0)` and
`eval_batches(corpus.rows("validation"), batch_size=16)`. `sources.py` says what a corpus may be.
"""

from lm.data.batches import (
    Groups,
    RowSource,
    eval_batches,
    local_train_batches,
    sharded_eval_batches,
    train_batches,
)
from lm.data.corpus import Corpus, DataConfig, open_corpus, prepare
from lm.data.dataset import Dataset
from lm.data.make_tokenizer import check_tokenizer, make_tokenizer
from lm.data.sources import Document, documents, holds_pairs
from lm.data.subword_tokenizer import SubwordTokenizer, load_subword
from lm.data.tokenizer import ByteTokenizer, Encoded, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "DataConfig",
    "Dataset",
    "Document",
    "Encoded",
    "Groups",
    "RowSource",
    "SubwordTokenizer",
    "Tokenizer",
    "check_tokenizer",
    "documents",
    "eval_batches",
    "holds_pairs",
    "load_subword",
    "make_tokenizer",
    "open_corpus",
    "prepare",
    "local_train_batches",
    "sharded_eval_batches",
    "train_batches",
]
