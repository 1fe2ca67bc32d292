"""Support chat: answers to questions about Python's standard library, in a chat's template.

A decoder that has read the library's source (configs/uses/policy.py:base) is tuned on questions
about its functions and classes, of which only the answers count in the loss.

Command   python run.py train --config=configs/uses/policy.py:base --workdir=runs/base-softmax
          python experiments/uses/chat.py data
          python run.py train --config=configs/uses/chat.py --config.init_from=runs/base-softmax
              --workdir=runs/chat
          python run.py train --config=configs/uses/chat.py:untuned
              --config.init_from=runs/base-softmax --workdir=runs/untuned
          python experiments/uses/chat.py measure runs/untuned runs/chat
Sizes     :tuned (the default), :untuned   the base as it is, in the same template
Time      7 minutes on two busy CPU cores, after the base's 6
Expect    held-out answers take 2.20 bits per byte, and 3.22 before; the word F1 of what is
          written is 0.09, and 0.02 before. So small a model learns only how answers sound.
"""

from configs import default
from configs.finetune import ARCHIVES
from configs.sizes import pick, short


def get_config(arg: str | None = None):
    """The config of "tuned" or "untuned"."""
    config = default.get_config()
    config.steps = 300
    config.data.source = f"files:{ARCHIVES}/stdlib_questions.jsonl"
    config.data.seq_len = 192
    config.data.validation_fraction = 0.1
    config.task.name = "instruction"
    config.task.text = ("question",)
    config.task.label = "answer"
    config.task.template = "plain"
    config.model.num_layers = 2
    short(config)
    config.optimizer.learning_rate = 1e-3
    config.evaluation.every = 0
    config.evaluation.num_examples = 0
    config.checkpoint.every = 0
    pick(arg, {"tuned": lambda config: None, "untuned": _untuned})(config)
    return config


def _untuned(config) -> None:
    """Updates too small to be any."""
    config.steps = 2
    config.schedule.warmup_steps = 1
    config.optimizer.learning_rate = 1e-20
