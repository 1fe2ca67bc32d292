"""Learning from a reward: a decoder writes Python, and more of its lines are statements of Python.

A decoder is trained on the source text of the standard library (:base). It then continues pieces of
it, is rewarded by the share of whole lines that parse, and follows the policy gradient of its own
samples, at a price for leaving the model that it began as. Nothing but the head's softmax is drawn
from, so another head is another policy.

Command   python run.py train --config=configs/uses/policy.py:base --workdir=runs/base-softmax
          python run.py train --config=configs/uses/policy.py --workdir=runs/softmax
              --config.init_from=runs/base-softmax
          python experiments/uses/policy.py runs/softmax runs/sigsoftmax
          the second run: both with --config.output.head=sigsoftmax and folders of that name
Sizes     :learn   from rewards (the default), :base   from text
Time      6 to 9 minutes for each of the four runs, on two busy CPU cores
Expect    the share of lines rises from 0.1 to 0.87 (softmax) and 0.92 (sigsoftmax), 17 nats from
          the start; one seed. It writes what is rewarded: many of the lines are a lone "else:"
"""

from configs import default
from configs.sizes import pick, short


def get_config(arg: str | None = None):
    """The config of "learn" or "base"."""
    config = default.get_config()
    config.data.seq_len = 128
    config.model.num_layers = 2
    config.evaluation.num_examples = 128
    short(config)
    pick(arg, {"learn": _learn, "base": _base})(config)
    return config


def _base(config) -> None:
    config.steps = 300
    config.batch_size = 32
    config.evaluation.every = 0


def _learn(config) -> None:
    config.steps = 100
    config.batch_size = 16
    config.policy.reward = "python_lines"
    config.policy.prompt_length = 32
    config.policy.max_new_tokens = 96
    config.policy.num_samples = 4
    config.policy.kl = 0.02
    config.optimizer.learning_rate = 3e-4
    config.schedule.warmup_steps = 10
    config.evaluation.every = 0
    config.log.every = 2
    config.checkpoint.every = 0
