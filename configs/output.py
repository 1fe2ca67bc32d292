"""Ablation of the output softmax: heads that map hidden states to probabilities of tokens.

Command   python run.py table --config=configs/output.py:tiny --workdir=/tmp/output
Rows      :tiny, :small  softmax tied and untied, with z-loss, label smoothing and a cap, and
          mixtures.
Sizes     :tiny  a small decoder over a BPE vocabulary of 1,024 tokens (the default)
          :all   every head that predicts tokens, in the decoder and vocabulary of :tiny
          :small that of configs/clm.py:small; wants a GPU
Seeds     3; every row sees the same batches, and starts from the same weights where shapes allow.
Time      :tiny about seven minutes on 2 CPU cores, :all about twenty-five.
Expect    Untied and mixture heads have more parameters; label smoothing costs likelihood.
"""

from configs import attention, clm

SEEDS = (0, 1, 2)


def get_config(arg: str | None = None):
    """The point around which the rows vary."""
    if arg not in (None, "tiny", "all", "small"):
        raise ValueError(f"it has the sizes tiny, all and small, not {arg!r}")
    if arg == "small":
        return clm.get_config("small")
    config = attention.get_config("tiny")
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 1024
    return config


def sweep(arg: str | None = None):
    """The rows; the first is the baseline."""
    yield {"output.head": "softmax"}
    yield {"output.tied": False}
    yield {"output.z_loss": 1e-4}
    yield {"output.label_smoothing": 0.1}
    yield {"output.cap": 30.0}
    for mixtures in (1, 4):
        yield {"output.head": "mixture", "output.mixtures": mixtures}
    if arg != "all":
        return
    yield {"output.focal": 1.0}
    yield {"output.confidence_penalty": 0.1}
    for head in ("mixture_of_contexts", "mixtape", "sigsoftmax", "plif", "gaussian", "gumbel"):
        yield {"output.head": head}
    for head in ("adaptive", "hierarchical"):
        yield {"output.head": head, "output.tied": False}
    yield {"output.head": "class_factored"}
    for head in ("sampled", "nce", "dynamic"):
        yield {"output.head": head, "output.samples": 128}
    for head in ("sparsemax", "entmax", "sigmoid"):
        yield {"output.head": head}
    yield {"output.head": "squared", "output.emphasis": 15.0, "output.margin": 30.0}
    yield {"output.head": "von_mises_fisher"}
