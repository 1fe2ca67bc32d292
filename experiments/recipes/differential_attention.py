"""Loss of differential attention beside softmax attention of as many parameters (2410.05258)."""

from etils import epath

from configs import attention
from lm.experiment.reproduce.training import train_rows

SEEDS = (0, 1, 2, 3, 4)
# The halves of a differential head are heads of usual size, so it has half as many heads.
ROWS = ({}, {"attention.mechanism": "differential", "model.num_heads": 2})
STEPS = 300


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Bits per held-out byte, and parameters, of differential attention beside softmax."""
    config = attention.get_config("tiny")
    config.steps = STEPS
    softmax, differential = (run.result for run in train_rows(config, ROWS, seed, folder))
    metric = "eval/bits_per_byte"
    return {
        "bits_per_byte": differential[metric] - softmax[metric],
        "parameters": differential["parameters"] / softmax["parameters"],
    }
