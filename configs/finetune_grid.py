"""A grid of learning rates, batch sizes and epochs (BERT, 1810.04805, appendix A.3).

Command   python experiments/archives.py
          python run.py sweep --config=configs/finetune_grid.py:tweets --workdir=runs/grid
          python experiments/grid.py runs/grid    (the best, on other examples)
Rows      4 learning rates x 2 batch sizes x 3 numbers of epochs
Tasks     those of configs/finetune.py (tweets is the default)
Seeds     2
Time      48 runs of three epochs on average: seven times the epochs of the task at five seeds.
"""

from configs import finetune

SEEDS = (0, 1)


def get_config(arg: str | None = None):
    """The task of configs/finetune.py."""
    return finetune.get_config(arg)


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    for rate in (2e-5, 3e-5, 5e-5, 1e-4):
        for size in (16, 32):
            for epochs in (2.0, 3.0, 4.0):
                yield {"optimizer.learning_rate": rate, "batch_size": size, "epochs": epochs}
