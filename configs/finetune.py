"""Fine-tuning: a pretrained encoder on a few thousand labelled examples.

Command   python experiments/archives.py
          python run.py table --config=configs/finetune.py:tweets --workdir=runs/tweets
Rows      one, over SEEDS; the seeds differ in the order of the rows and in the new head.
Tasks     :tweets    how tweets feel, -4 to 4: regression (the default)
          :amazon    the same of product reviews
          :reviews   snippets of film reviews, fresh or rotten: classification
          :tweets_ner, :japanese_ner   entities of ten and of eight types: tagging
          :cola :sst2 :mrpc :qqp :stsb :mnli :qnli :rte :wnli   GLUE, by TensorFlow Datasets
          :conll2003 :squad   CoNLL-2003 and SQuAD 1.1, likewise
          :tiny      :tweets with a small encoder from scratch
Model     all-MiniLM-L6-v2, 22 M parameters; any other by --config.init_from=hf:FOLDER
Time      :tweets an epoch of 48 tokens takes 80 s a seed on 2 CPU cores, thrice that on busy ones.
Expect    :tweets two epochs, r = 0.925, where ridge regression on frozen features has 0.83;
          :reviews an accuracy of 0.81, where logistic regression has 0.75; entities F1 = 0.48.
"""

import functools

from configs import default
from configs.sizes import pick

SEEDS = (0, 1, 2, 3, 4)
METRICS = {"cola": "matthews", "mrpc": "f1", "qqp": "f1"}
# F1 is of the second class, and GLUE's of these; by the alphabet they would be first.
LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}
ARCHIVES = "~/.cache/softmax-laboratory/archives"
GLUE = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def get_config(arg: str | None = None):
    """The config of a task."""
    tasks = {
        "tweets": lambda config: _rated(config, "tweets.tsv"),
        "amazon": lambda config: _rated(config, "amazon.tsv"),
        "reviews": _reviews,
        "tweets_ner": lambda config: _entities(config, "tweets.conll"),
        "japanese_ner": _japanese,
        "conll2003": _conll2003,
        "squad": _squad,
        "tiny": _tiny,
        **{name: functools.partial(_glue, name=name) for name in GLUE},
    }
    task = pick(arg, tasks)
    config = default.get_config()
    config.init_from = f"hf:{ARCHIVES}/minilm"
    config.model.architecture = "encoder"
    config.epochs = 4.0
    config.batch_size = 32
    config.data.seq_len = 64
    config.data.validation_fraction = 0.2
    config.output.tied = False
    config.output.bias = True
    config.task.pooling = "mean"
    # What such an encoder is usually given.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.999
    config.schedule.name = "linear"
    config.schedule.warmup_steps = 40
    config.schedule.final_lr_ratio = 0.0
    config.checkpoint.every = 0
    config.evaluation.every = 100
    config.evaluation.num_examples = 0
    task(config)
    return config


def sweep(arg: str | None = None):
    """One row: the task as it is."""
    yield {}


def _rated(config, name: str) -> None:
    config.task.name = "regression"
    config.data.source = f"files:{ARCHIVES}/{name}"
    config.output.head = "squared"


def _reviews(config) -> None:
    config.task.name = "classification"
    config.data.source = f"files:{ARCHIVES}/reviews.csv"


def _entities(config, name: str) -> None:
    config.task.name = "token_classification"
    config.task.text = ("tokens",)
    config.task.label = "tags"
    config.data.source = f"files:{ARCHIVES}/{name}"
    # A tag for every word is harder to learn than a label for a text.
    config.epochs = 8.0
    config.optimizer.learning_rate = 3e-4


def _japanese(config) -> None:
    """MiniLM's vocabulary has single characters of Japanese at best."""
    _entities(config, "japanese.conll")
    config.task.word_separator = ""
    config.data.seq_len = 128
    config.batch_size = 16
    config.epochs = 12.0
    config.optimizer.learning_rate = 5e-4
    config.evaluation.every = 50


def _conll2003(config) -> None:
    _entities(config, "")
    config.data.source = "tfds:conll2003"
    config.task.label = "ner"
    config.data.seq_len = 128


def _squad(config) -> None:
    config.task.name = "extractive_qa"
    config.task.text = ("question", "context")
    config.task.label = "answers"
    config.task.doc_stride = 128
    config.data.source = "tfds:squad"
    config.data.seq_len = 384
    config.model.max_seq_len = 512
    config.output.bias = None
    config.epochs = 2.0
    config.evaluation.every = 1000
    config.evaluation.num_examples = 1000


def _glue(config, name: str) -> None:
    config.task.name = "regression" if name == "stsb" else "classification"
    config.task.text = GLUE[name]
    config.task.labels = LABELS.get(name, ())
    config.task.metric = METRICS.get(name, "")
    config.data.source = f"tfds:glue/{name}"
    config.data.seq_len = 128
    if name == "stsb":
        config.output.head = "squared"


def _tiny(config) -> None:
    _rated(config, "tweets.tsv")
    config.init_from = ""
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 2048
    config.data.seq_len = 48
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.init_std = 0.08
    config.optimizer.learning_rate = 3e-3
