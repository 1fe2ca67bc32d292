"""Masked language modelling: an encoder predicts masked tokens from both sides.

Command   python run.py train --config=configs/mlm.py:tiny --workdir=/tmp/mlm
Sizes     :tiny   4 layers, 128 features, bytes, 300 steps of 16 x 256 (the default)
          :base   BERT base, 110 M parameters, WordPiece of 30,464 tokens, on One Billion Words
Time      :tiny takes a few minutes on 2 CPU cores; :base a TPU slice or several GPUs.
Expect    :tiny ends near 1.55 nats per masked byte, at an accuracy of 59 %; the entropy of
          the masked bytes is 3.15.
"""

from configs import default
from configs.sizes import pick, short, spread


def get_config(arg: str | None = None):
    """The config of a size: "tiny" or "base"."""
    config = default.get_config()
    config.objective = "masked"
    config.model.architecture = "encoder"
    pick(arg, {"tiny": short, "base": _base})(config)
    return config


def _base(config) -> None:
    """Whole words are masked; rows of 512 tokens throughout, where BERT began with 128."""
    config.steps = 1_000_000
    config.batch_size = 256
    config.corruption.whole_word = True
    config.data.source = "tfds:lm1b"
    config.data.tokenizer = "wordpiece"
    config.data.vocab_size = 30_464
    config.data.seq_len = 512
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.num_heads = 12
    config.model.max_seq_len = 512
    config.model.norm_position = "post"
    config.model.dropout = 0.1
    config.model.remat = True
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.999
    config.schedule.name = "linear"
    config.schedule.warmup_steps = 10_000
    config.schedule.final_lr_ratio = 0.0
    spread(config)
    config.evaluation.every = config.checkpoint.every = 10_000
    config.evaluation.num_examples = 2048
