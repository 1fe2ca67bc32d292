"""The softmax bottleneck: the excess loss of output heads over the truth at several d_model.

The text is drawn from a language whose matrix of log-probabilities has rank 18, so that a softmax
needs 17 features to express it (1711.03953). The model below the head is no limit: the next token
depends on the last one alone, and the feed-forward layer is wide. eval/excess_nats is the held-out
loss minus that of the true distribution on the same tokens: the loss for lack of features, steps or
data.

Command   python run.py table --config=configs/bottleneck.py:tiny --workdir=/tmp/bottleneck
          python experiments/bottleneck.py /tmp/bottleneck    (plots of excess nats and spectra)
Rows      :tiny   six heads at 4 and 8 features, three at 16, and the softmax at 32; each is
                  compared with the softmax of its size
Seeds     10; every row of a seed sees the same batches.
Time      half an hour on 2 CPU cores, of which mixtape takes a third.
Expect    The softmax is about 0.7, 0.3, 0.05 and 0.02 nats above the truth at 4, 8, 16 and 32
          features; plif and mixtape are ahead of it at 4 and 8 (experiments/results/spectra.png).
"""

from configs import default

SEEDS = range(10)
METRIC = "eval/excess_nats"
AGAINST = ("model.d_model",)


def get_config(arg: str | None = None):
    """The point around which the rows vary."""
    if arg not in (None, "tiny"):
        raise ValueError(f"it has the size tiny, not {arg!r}")
    config = default.get_config()
    config.steps = 400
    config.batch_size = 32
    config.data.source = "synthetic:rank=18,tokens=2000000"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 256
    config.data.seq_len = 64
    config.model.num_layers = 1
    config.model.d_model = 4
    config.model.num_heads = 1
    config.model.mlp_dim = 256
    config.model.norm = "rmsnorm"
    config.model.position_embedding = "none"
    config.attention.query_chunk_size = 0  # all of so short a row at once
    config.model.init_std = 0.2
    config.output.tied = False
    config.optimizer.learning_rate = 4e-2
    config.optimizer.weight_decay = 0.0
    config.schedule.final_lr_ratio = 0.0
    config.evaluation.every = 100
    config.evaluation.num_examples = 512
    config.checkpoint.every = 0
    return config


def sweep(arg: str | None = None):
    """The rows; the first of each size is its baseline."""
    for features in (4, 8):
        for head in ("softmax", "sigsoftmax", "plif", "mixtape", "mixture"):
            yield {"output.head": head, "model.d_model": features}
        yield {"output.head": "softmax", "output.cap": 10.0, "model.d_model": features}
    for head in ("softmax", "sigsoftmax", "plif"):
        yield {"output.head": head, "model.d_model": 16}
    yield {"output.head": "softmax", "model.d_model": 32}
