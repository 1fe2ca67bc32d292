"""Maps attention scores to weights. `WEIGHTINGS` maps every variant's name to its record.

Adding a softmax is one function in this package, one entry in the table below, and one line in a
config's `sweep()`; the laws in `lm/softmax/laws.py` then hold it to its declared facts.
"""

from flax.linen import initializers

from lm.softmax.dense import (
    cog,
    log_length,
    off_by_one,
    sink,
    softcap,
    softmax,
    softplus_l1,
    ssmax,
    taylor,
    temperature,
)
from lm.softmax.pointwise import relu, relu_squared, sigmoid
from lm.softmax.sampled import gumbel_softmax
from lm.softmax.sparse import alpha_relu, entmax, entmax15, sparsemax, top_k
from lm.softmax.weighting import ANY, ONE_TO_TWO, POSITIVE, Weighting

WEIGHTINGS: dict[str, Weighting] = {
    "softmax": Weighting(softmax),
    "temperature": Weighting(temperature, learnable={"temperature": POSITIVE}),
    "softcap": Weighting(softcap, shift_invariant=False, learnable={"cap": POSITIVE}),
    "log_length": Weighting(log_length),
    # The initial scale keeps scores as large as they are: 0.168 is 1 / mean of log n, n to 1024.
    "ssmax": Weighting(ssmax, learned={"scale": initializers.constant(0.168)}),
    "off_by_one": Weighting(off_by_one, normalised=False, shift_invariant=False),
    "sink": Weighting(
        sink, normalised=False, shift_invariant=False, learned={"sink": initializers.zeros}
    ),
    "taylor": Weighting(taylor, shift_invariant=False, monotone=False),
    "sigmoid": Weighting(sigmoid, normalised=False, shift_invariant=False, learnable={"bias": ANY}),
    "relu": Weighting(relu, sparse=True, normalised=False, shift_invariant=False),
    "relu_squared": Weighting(relu_squared, sparse=True, normalised=False, shift_invariant=False),
    "softplus_l1": Weighting(softplus_l1, shift_invariant=False),
    "sparsemax": Weighting(sparsemax, sparse=True),
    "entmax15": Weighting(entmax15, sparse=True),
    "entmax": Weighting(entmax, sparse=True, learnable={"alpha": ONE_TO_TWO}),
    "alpha_relu": Weighting(alpha_relu, sparse=True, normalised=False, shift_invariant=False),
    "top_k": Weighting(top_k, sparse=True),
    "gumbel_softmax": Weighting(gumbel_softmax, random=True, learnable={"temperature": POSITIVE}),
    "cog": Weighting(cog, signed=True, shift_invariant=False),
}

__all__ = ["WEIGHTINGS", "Weighting"]
