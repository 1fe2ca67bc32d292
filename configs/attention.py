"""Ablation of the attention's softmax: which map from scores to weights predicts best, and do the
mechanisms that replace or surround it predict better?

Command   python run.py table --config=configs/attention.py:tiny --workdir=/tmp/attention
Rows      :tiny  softmax, sigmoid, sparsemax, entmax15 in a small byte-level decoder (the default)
          :all   every weighting of lm.softmax.WEIGHTINGS and every mechanism of
                 lm.attention.ATTENTIONS, in the decoder of configs/clm.py:tiny
Seeds     3; every row sees the same batches and starts from the same weights.
Time      :tiny about four minutes on 2 CPU cores, :all about an hour.
Expect    After so few steps the softmax and its sparse relatives are close; the table says which
          differences are larger than the seeds' noise.
"""

from configs import clm, default

SEEDS = (0, 1, 2)


def get_config(arg: str | None = None):
    """The point around which the rows vary."""
    if arg not in (None, "tiny", "all"):
        raise ValueError(f"configs/attention.py has the sizes tiny and all, not {arg!r}")
    if arg == "all":
        return clm.get_config("tiny")
    config = default.get_config()
    config.steps = 150
    config.batch_size = 16
    config.data.length = 128
    config.model.layers = 2
    config.model.features = 64
    config.model.heads = 4
    # So few steps learn little from the usual small weights and learning rate.
    config.model.positions = "rotary"
    config.model.init_scale = 0.08
    config.optimizer.learning_rate = 8e-3
    config.schedule.warmup = 15
    config.evaluation.every = 50
    config.evaluation.rows = 256
    config.checkpoint.every = 0
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {"attention.weighting": "softmax"}
    yield {"attention.weighting": "sigmoid"}
    yield {"attention.weighting": "sparsemax"}
    yield {"attention.weighting": "entmax15"}
    if arg == "all":
        yield {"attention.weighting": "off_by_one"}
        yield {"attention.weighting": "sink"}
        for cap in (10.0, 50.0):
            yield {"attention.weighting": "softcap", "attention.cap": cap}
        for temperature in (0.5, 2.0):
            yield {"attention.weighting": "temperature", "attention.temperature": temperature}
        yield from mechanisms()


def mechanisms():
    """A row for every mechanism, with what its paper adds to it."""
    # The paper's halves are heads of usual size, so here heads are twice as large and half as many.
    yield {"attention.mechanism": "differential", "model.heads": 2}
    yield {"attention.mechanism": "gated"}
    yield {"attention.mechanism": "gated", "attention.gate": "head"}
    yield {"attention.mechanism": "talking_heads"}
    # Forgetting and the broken stick tell near from far by themselves.
    yield {"attention.mechanism": "forgetting", "model.positions": "none", "model.qk_norm": True}
    yield {"attention.mechanism": "stick_breaking", "model.positions": "none"}
    # Features of q and k, unlike their product, do not turn to a difference of positions.
    yield {"attention.mechanism": "linear", "model.positions": "learned"}
    # Small scores are what random features estimate well.
    yield {"attention.mechanism": "favor", "attention.redraw": True, "model.qk_norm": True}
    # The horizon is the longest row.
    yield {
        "attention.mechanism": "cosformer",
        "model.positions": "learned",
        "model.max_length": 256,
    }
