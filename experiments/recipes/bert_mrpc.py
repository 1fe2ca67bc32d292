"""BERT-Base fine-tuned on MRPC, which needs a network (1810.04805)."""

from etils import epath

from configs import finetune
from lm.experiment.reproduce.training import final_percent

SEEDS = (0, 1, 2, 3, 4)
ROW = {
    "init_from": "hf:google-bert/bert-base-uncased",
    "epochs": 3.0,
    "task.pooling": "pooler_tanh",
    "model.dropout": 0.1,
    "optimizer.learning_rate": 2e-5,
    "schedule.warmup_steps": 34,
}


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Accuracy on the development set, in percent."""
    return {
        "accuracy": final_percent("eval/accuracy", finetune.get_config("mrpc"), ROW, seed, folder)
    }
