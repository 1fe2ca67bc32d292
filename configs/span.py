"""Span corruption: an encoder-decoder generates the spans that were cut out of a text.

Command   python run.py train --config=configs/span.py:tiny --workdir=/tmp/span
Sizes     :tiny   2 + 2 layers, 128 features, bytes, 300 steps of 16 x 256 (the default)
          :small  T5 small (1.0), 60 M parameters, Unigram of 32,128 tokens, on C4
Time      :tiny takes a few minutes on 2 CPU cores; :small a TPU slice or several GPUs.
Expect    :tiny ends near 2.38 nats per target token, where the targets' own entropy is 3.41.
"""

from configs import default
from configs.sizes import pick, short, spread


def get_config(arg: str | None = None):
    """The config of a size: "tiny" or "small"."""
    config = default.get_config()
    config.objective = "span"
    config.model.architecture = "encoder_decoder"
    pick(arg, {"tiny": _tiny, "small": _small})(config)
    return config


def _tiny(config) -> None:
    """Bytes want longer spans (ByT5, 2105.13626), of which there are at most eleven in a row."""
    config.corruption.mean_span_length = 8.0
    config.model.num_layers = 2
    short(config)


def _small(config) -> None:
    config.steps = 524_288
    config.batch_size = 128
    config.data.source = "tfds:c4/en"
    config.data.tokenizer = "unigram"
    config.data.vocab_size = 32_128
    config.data.seq_len = 512
    config.model.num_layers = 6
    config.model.d_model = 512
    config.model.num_heads = 8
    config.model.mlp_dim = 2048
    config.model.activation = "relu"
    config.model.bias = False
    config.model.norm = "rmsnorm"
    config.model.position_embedding = "rotary"
    config.model.dtype = "bfloat16"
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "rsqrt"
    config.schedule.warmup_steps = 10_000
    spread(config)
    config.evaluation.every = config.checkpoint.every = 10_000
    config.evaluation.num_examples = 2048
