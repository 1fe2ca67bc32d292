"""Ablation of fine-tuning methods: every method on one task, from the same checkpoint.

Command   python experiments/archives.py
          python run.py table --config=configs/finetune_table.py:tweets --workdir=runs/methods
Rows      full, head, bitfit, lora, adapter, prompt, prefix, ia3, softmax; each but full trains the
          new head too. The softmax row begins as the softmax it learns to leave: a temperature of 1
          for every head.
Tasks     those of configs/finetune.py (tweets is the default)
Seeds     5; every row sees the same batches and starts from the same checkpoint and head.
Time      seven times that of the task's own config; tweets with 48 tokens and one epoch took an
          hour on 2 CPU cores.
Expect    there, r = 0.914 of full, 0.908 of adapters, 0.901 of LoRA, 0.749 of the head alone.
"""

from configs import finetune

SEEDS = (0, 1, 2, 3, 4)
# What trains few numbers wants larger steps.
FEW = {"optimizer.learning_rate": 2e-3}


def get_config(arg: str | None = None):
    """The task of configs/finetune.py."""
    return finetune.get_config(arg)


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {"finetuning.method": "full"}
    yield {"finetuning.method": "head", **FEW}
    for name in ("bitfit", "lora", "adapter", "prompt", "prefix", "ia3"):
        yield {"finetuning.method": f"{name}+head", **FEW}
    yield {
        "finetuning.method": "softmax+head",
        "attention.weighting": "temperature",
        "attention.learn": ("temperature",),
        **FEW,
    }
