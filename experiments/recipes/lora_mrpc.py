"""RoBERTa-Base tuned by LoRA on MRPC, which needs a network (2106.09685)."""

from etils import epath

from configs import finetune
from lm.experiment.reproduce.training import final_percent

SEEDS = (0, 1, 2)
ROW = {
    "init_from": "hf:FacebookAI/roberta-base",
    "finetuning.method": "lora+head",
    "finetuning.rank": 8,
    "finetuning.alpha": 8.0,
    "finetuning.target_modules": ("query", "value"),
    "epochs": 30.0,
    "batch_size": 16,
    "task.pooling": "pooler_tanh",
    "model.dropout": 0.1,
    "optimizer.learning_rate": 4e-4,
    "schedule.warmup_steps": 413,
}


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Accuracy on the development set, in percent."""
    return {
        "accuracy": final_percent("eval/accuracy", finetune.get_config("mrpc"), ROW, seed, folder)
    }
