"""Sequence to sequence: an encoder-decoder generates a target text from a source text.

Command   python run.py train --config=configs/pairs.py:tiny --workdir=/tmp/pairs
Sizes     :tiny   what a definition of the standard library does, from its signature: 2 + 2 layers,
                  128 features, bytes, 300 steps of 16 x 256 (the default)
          :base   translation: Transformer base (1706.03762), BPE of 37,120 tokens, from pairs of
                  your own: --config.data.source=pairs:FILES, a source, a tab and a target a line
Time      :tiny takes a few minutes on 2 CPU cores; :base several GPUs.
Expect    eval/nats_per_token falls below eval/unigram_nats, the entropy of the same targets.
"""

from configs import default
from configs.sizes import pick, short


def get_config(arg: str | None = None):
    """The config of a size: "tiny" or "base"."""
    config = default.get_config()
    config.objective = "seq2seq"
    config.data.source = "docstrings"
    config.model.architecture = "encoder_decoder"
    pick(arg, {"tiny": _tiny, "base": _base})(config)
    return config


def _tiny(config) -> None:
    config.model.num_layers = 2
    short(config)


def _base(config) -> None:
    config.steps = 100_000
    config.batch_size = 96
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 37_120
    config.model.num_layers = 6
    config.model.d_model = 512
    config.model.num_heads = 8
    config.model.activation = "relu"
    config.model.norm_position = "post"
    config.model.position_embedding = "sinusoidal"
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.output.label_smoothing = 0.1
    config.optimizer.learning_rate = 7e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.98
    config.schedule.name = "rsqrt"
    config.schedule.warmup_steps = 4000
    config.evaluation.every = config.checkpoint.every = 2000
    config.evaluation.num_examples = 1024
