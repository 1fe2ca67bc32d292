"""Ablation of fine-tuning methods: every method on one task, from the same checkpoint, each at its
own learning rate.

Command   python experiments/archives.py
          python run.py table --config=configs/finetune_table.py:tweets --workdir=runs/methods
Rows      full, head, bitfit, lora, adapter, prompt, prefix, ia3, softmax; each but full trains the
          new head too. The softmax row begins as the softmax it learns to leave: a temperature of 1
          for every head.
Tasks     those of configs/finetune.py (tweets is the default), for two epochs
Tuning    5 learning rates for each row: all for an eighth of the steps, three for a quarter, two
          for half
Seeds     5; every row sees the same batches and starts from the same checkpoint and head.
Time      tweets with 48 tokens: an epoch takes two minutes or less on one CPU core, the table four
          hours.
Expect    experiments/results/finetune_methods.md
"""

from configs import finetune

SEEDS = (0, 1, 2, 3, 4)
# What trains few numbers wants larger steps.
TUNE = {"optimizer.learning_rate": (5e-5, 2e-4, 1e-3, 4e-3, 2e-2)}
TUNE_HALVING = True


def get_config(arg: str | None = None):
    """The task of configs/finetune.py."""
    config = finetune.get_config(arg)
    config.epochs = 2.0
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {"finetuning.method": "full"}
    for name in ("head", "bitfit", "lora", "adapter", "prompt", "prefix", "ia3"):
        yield {"finetuning.method": name if name == "head" else f"{name}+head"}
    yield {
        "finetuning.method": "softmax+head",
        "attention.weighting": "temperature",
        "attention.learn": ("temperature",),
    }
