"""Continual learning: forgetting of a task when others are learned after it.

Command   python experiments/archives.py tweets.tsv amazon.tsv movie.tsv nyt.tsv
          python run.py table --config=configs/continual.py:tiny --workdir=runs/continual
Rows      one task after the other by default; with three quarters of every batch replayed from all
          rows of earlier tasks, or half of it from 100 of each; with elastic weight consolidation;
          and, as the upper bound, joint training
Tasks     how tweets, product reviews, film reviews and editorials feel, -4 to 4: regression
Sizes     :tiny   a small encoder from scratch (the default)
          :base   all-MiniLM-L6-v2, which archives.py fetches too
Seeds     5; the first table is of the mean r over tasks after the last, the second of forgetting.
Time      :tiny took 28 minutes on 2 CPU cores that were shared with much else; :base was not run.
Expect    :tiny 0.42 by default, 0.47 with all rows replayed or with ewc, 0.48 joint; 100 rows of
          each, replayed, forget less and learn less: 0.40. experiments/results/continual.md
"""

from configs import default, finetune
from configs.sizes import pick

SEEDS = (0, 1, 2, 3, 4)
ALSO = ("eval/forgetting",)
TASKS = ("tweets", "amazon", "movie", "nyt")


def get_config(arg: str | None = None):
    """The chain of a size."""
    size = pick(arg, {"tiny": "tiny", "base": "tweets"})
    config = finetune.get_config(size)
    config.data.source = default.get_config().data.source
    config.continual.sources = tuple(f"files:{finetune.ARCHIVES}/{name}.tsv" for name in TASKS)
    # As many steps for every task, however large.
    config.epochs = None
    config.steps = 120
    config.schedule.warmup_steps = 12
    config.evaluation.every = 0
    config.evaluation.num_examples = 500
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {}
    # Each is the best of a few on a seed that is not among SEEDS; see experiments/LOG.md.
    yield {"continual.replay_fraction": 0.75}
    yield {"continual.replay_fraction": 0.5, "continual.memory_size": 100}
    yield {"regularization.ewc": 30.0}
    yield {"continual.joint": True}
