"""BERT-Base fine-tuned on the entities of CoNLL-2003, which needs a network (1810.04805)."""

from etils import epath

from configs import finetune
from lm.experiment.reproduce.training import final_percent

SEEDS = (0, 1, 2, 3, 4)
ROW = {
    "init_from": "hf:google-bert/bert-base-cased",
    "epochs": 4.0,
    "model.dropout": 0.1,
    "optimizer.learning_rate": 5e-5,
    "schedule.warmup_steps": 176,
}


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """F1 of whole entities on the development set, in percent."""
    return {
        "f1": final_percent("eval/entity_f1", finetune.get_config("conll2003"), ROW, seed, folder)
    }
