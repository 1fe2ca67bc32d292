"""Every output head that predicts tokens, each at its own learning rate; screened, confirmed.

Command   python run.py table --config=configs/output_table.py --workdir=W --protocol=screen
          python run.py table --config=configs/output_table.py --workdir=W --protocol=confirm
Rows      those of configs/output.py:all
Tuning    4 learning rates for each row: all for a quarter of the steps, the better two for half
Seeds     3 of screening, 10 others of the table
Time      a run is one to two minutes on one CPU core; tuning takes about an hour, screening two,
          confirming six rows and the baseline two.
Expect    experiments/results/output_table.md
"""

from configs import output
from configs.sizes import train_for

SEEDS = range(10)
TUNE = {"optimizer.learning_rate": (2e-3, 5e-3, 1.2e-2, 2.8e-2)}
TUNE_HALVING = True


def get_config(arg: str | None = None):
    """The decoder of configs/output.py:tiny, trained for 1,000 steps."""
    config = output.get_config(arg)
    train_for(config, 1000)
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield from output.sweep("all")
