"""Causal language modelling: a decoder predicts the next token.

Command   python run.py train --config=configs/clm.py:tiny --workdir=/tmp/clm
Sizes     :tiny   4 layers, 128 features, bytes, 300 steps of 16 x 256 (the default)
          :small  8 layers, 512 features, BPE of 16,384 tokens, 5,000 steps of 32 x 512
          :base   GPT-2 small, 124 M parameters, BPE of 50,304 tokens, on One Billion Words
          :xl     GPT-3 XL (2005.14165), 1.3 B parameters, rows of 2,048, likewise
Time      :tiny takes about two minutes on 2 CPU cores; :small wants a GPU, :base and :xl several
          GPUs or a TPU slice (docs/howto/planning.md).
Expect    :tiny ends below 2.6 bits per byte on held-out standard-library text.
"""

from configs import default
from configs.sizes import pick, short, spread


def get_config(arg: str | None = None):
    """The config of a size: "tiny", "small", "base" or "xl"."""
    config = default.get_config()
    pick(arg, {"tiny": short, "small": _small, "base": _base, "xl": _xl})(config)
    return config


def _small(config) -> None:
    config.steps = 5000
    config.batch_size = 32
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 16384
    config.data.seq_len = 512
    config.model.num_layers = 8
    config.model.d_model = 512
    config.model.num_heads = 8
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-3
    config.schedule.warmup_steps = 250
    config.evaluation.every = config.checkpoint.every = 500
    config.evaluation.num_examples = 512


def _base(config) -> None:
    config.steps = 50_000
    config.batch_size = 512
    config.data.source = "tfds:lm1b"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 50_304
    config.data.seq_len = 1024
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.num_heads = 12
    config.model.remat = True
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 6e-4
    config.schedule.warmup_steps = 2000
    spread(config)
    config.evaluation.every = config.checkpoint.every = 1000
    config.evaluation.num_examples = 2048


def _xl(config) -> None:
    """Batches of a million tokens, for twenty tokens a parameter."""
    _base(config)
    config.steps = 25_000
    config.data.seq_len = 2048
    config.model.num_layers = 24
    config.model.d_model = 2048
    config.model.num_heads = 16
    config.model.max_seq_len = 2048
    config.optimizer.learning_rate = 2e-4
