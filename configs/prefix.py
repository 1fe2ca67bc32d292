"""Prefix language modelling: a decoder continues a prefix that it attends to in both directions.

Command   python run.py train --config=configs/prefix.py:tiny --workdir=/tmp/prefix
Sizes     :tiny   4 layers, 128 features, bytes, 300 steps of 16 x 256 (the default)
          :small  8 layers, 512 features, BPE of 16,384 tokens, 5,000 steps of 32 x 512
Time      :tiny takes about two minutes on 2 CPU cores; :small wants a GPU.
Expect    eval/nats_per_token falls below eval/unigram_nats, the entropy of the same targets.
"""

from configs import clm


def get_config(arg: str | None = None):
    """The config of a size of configs/clm.py with the objective "prefix"."""
    config = clm.get_config(arg)
    config.objective = "prefix"
    return config
