"""Ablation of the softmax in attention: weightings, and mechanisms that replace or surround them.

Command   python run.py table --config=configs/attention.py:tiny --workdir=/tmp/attention
Rows      :tiny  softmax, sigmoid, sparsemax, entmax15 in a small byte-level decoder (the default)
          :all   every weighting of lm.softmax.WEIGHTINGS and every mechanism of
                 lm.attention.ATTENTIONS, in the same decoder
Seeds     5; every row sees the same batches and starts from the same weights.
Time      :tiny about five minutes on 2 CPU cores, :all about an hour on two busy CPU cores.
Expect    After so few steps the softmax and its closest relatives are not separable; the table says
          which differences are larger than the seeds' noise.
"""

from configs import default

SEEDS = (0, 1, 2, 3, 4)


def get_config(arg: str | None = None):
    """The point around which the rows vary."""
    if arg not in (None, "tiny", "all"):
        raise ValueError(f"it has the sizes tiny and all, not {arg!r}")
    config = default.get_config()
    config.steps = 150
    config.batch_size = 16
    config.data.seq_len = 128
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.num_heads = 4
    # So few steps learn little from the usual small weights and learning rate.
    config.model.position_embedding = "rotary"
    config.model.init_std = 0.08
    config.optimizer.learning_rate = 8e-3
    config.schedule.warmup_steps = 15
    config.evaluation.every = 50
    config.evaluation.num_examples = 256
    config.checkpoint.every = 0
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {"attention.weighting": "softmax"}
    yield {"attention.weighting": "sigmoid"}
    yield {"attention.weighting": "sparsemax"}
    yield {"attention.weighting": "entmax15"}
    if arg == "all":
        yield {"attention.weighting": "sigmoid", "model.qk_norm": True}
        yield {"attention.weighting": "softmax", "model.qk_norm": True}
        for name in ("off_by_one", "sink", "ssmax", "taylor", "softplus_l1", "cog"):
            yield {"attention.weighting": name}
        # Scores keep their size in rows of the training length.
        yield {"attention.weighting": "log_length", "attention.reference_length": 128.0}
        for name in ("relu", "relu_squared", "alpha_relu", "softpick"):
            yield {"attention.weighting": name}
        yield {"attention.weighting": "entmax", "attention.alpha": 1.25}
        # Every head finds its own sparsity (1909.00015).
        yield {
            "attention.weighting": "entmax",
            "attention.alpha": 1.25,
            "attention.learn": ("alpha",),
        }
        for name in ("asentmax", "normmax", "budget"):
            yield {"attention.weighting": name}
        yield {"attention.weighting": "top_k", "attention.k": 8}
        yield {"attention.weighting": "gumbel_softmax"}
        yield {"attention.weighting": "gumbel_softmax", "attention.hard": True}
        yield {"attention.weighting": "softcap", "attention.cap": 10.0}
        yield {"attention.weighting": "temperature", "attention.learn": ("temperature",)}
        yield from mechanisms()


def mechanisms():
    """A row for every mechanism, with what its paper adds to it."""
    # The paper's halves are heads of usual size, so here heads are twice as large and half as many.
    yield {"attention.mechanism": "differential", "model.num_heads": 2}
    yield {"attention.mechanism": "gated"}
    yield {"attention.mechanism": "gated", "attention.gate": "head"}
    yield {"attention.mechanism": "exclusive"}
    yield {"attention.mechanism": "laser"}
    yield {"attention.mechanism": "talking_heads"}
    # Forgetting and the broken stick tell near from far by themselves.
    yield {
        "attention.mechanism": "forgetting",
        "model.position_embedding": "none",
        "model.qk_norm": True,
    }
    yield {"attention.mechanism": "stick_breaking", "model.position_embedding": "none"}
    # Features of q and k, unlike their product, do not turn to a difference of positions.
    yield {"attention.mechanism": "linear", "model.position_embedding": "learned"}
    # Small scores are what random features estimate well.
    yield {"attention.mechanism": "favor", "attention.redraw": True, "model.qk_norm": True}
    # The horizon is the longest row.
    yield {
        "attention.mechanism": "cosformer",
        "model.position_embedding": "learned",
        "model.max_seq_len": 128,
    }
