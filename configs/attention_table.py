"""Every weighting and mechanism of attention, each at its own learning rate; screened, confirmed.

Command   python run.py table --config=configs/attention_table.py --workdir=W --protocol=screen
          python run.py table --config=configs/attention_table.py --workdir=W --protocol=confirm
Rows      those of configs/attention.py:all, and the softmax with every kind of positions that a
          mechanism is combined with, which is what it is compared with.
Tuning    4 learning rates for each row: all for a quarter of the steps, the better two for half
Seeds     3 of screening, 10 others of the table
Time      a run is a minute on one CPU core; tuning takes about an hour, screening two, confirming
          six rows and their baselines two.
Expect    experiments/results/attention_table.md
"""

from configs import attention
from configs.sizes import train_for

SEEDS = range(10)
TUNE = {"optimizer.learning_rate": (2e-3, 5e-3, 1.2e-2, 2.8e-2)}
TUNE_HALVING = True
AGAINST = ("model.position_embedding", "model.qk_norm")


def get_config(arg: str | None = None):
    """The decoder of configs/attention.py, trained on two million bytes."""
    config = attention.get_config(arg)
    train_for(config, 1000)
    return config


def sweep(arg: str | None = None):
    """The rows; the first of each kind of positions and norms is the baseline of its kind."""
    yield {"attention.weighting": "softmax"}
    yield {"attention.weighting": "softmax", "model.position_embedding": "none"}
    yield {"attention.weighting": "softmax", "model.position_embedding": "learned"}
    yield {"attention.weighting": "softmax", "model.qk_norm": True}
    yield {
        "attention.weighting": "softmax",
        "model.position_embedding": "none",
        "model.qk_norm": True,
    }
    baselines = [{"attention.weighting": "softmax"}]
    baselines.append(baselines[0] | {"model.qk_norm": True})
    yield from (row for row in attention.sweep("all") if row not in baselines)
