"""Monitoring a stream of news: how a sentence feels, and an alarm when the stream's mood falls.

Command   python experiments/archives.py nyt.tsv movie.tsv amazon.tsv tweets.tsv
          python experiments/uses/news.py data
          python run.py train --config=configs/uses/news.py --workdir=runs/news
          python run.py predict --workdir=runs/news --data=ARCHIVES/news_calm.tsv --output=runs/calm
          python run.py predict --workdir=runs/news --data=ARCHIVES/news_stream.tsv
              --output=runs/stream
          python experiments/uses/news.py chart runs/calm runs/stream
Text      sentences of editorials, each rated from -4 to 4 by 20 people (VADER), in the order of the
          archive: the first half to learn from, with
          reviews and tweets that are rated likewise, calm ones to set the alarm by, and a stream in
          which a fall is planted half way
Model     two layers, 64 features, from scratch
Time      some minutes on 2 CPU cores
Expect    docs/howto/uses.md
"""

from configs import finetune


def get_config(arg: str | None = None):
    """The config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/uses/news.py takes no argument, not {arg!r}")
    config = finetune.get_config("tiny")
    config.data.source = f"files:{finetune.ARCHIVES}/news_train.tsv"
    config.data.seq_len = 48
    config.data.validation_fraction = 0.1
    config.epochs = 1.0
    config.evaluation.every = 0
    return config
