"""Maps attention scores to weights. `WEIGHTINGS` maps every variant's name to its record.

Adding a softmax is one function in this package, one entry in the table below, and one line in a
config's `sweep()`; the laws in `lm/softmax/laws.py` then hold it to its declared facts.
"""

import math

from flax.linen import initializers

from lm.softmax import bisection, dense, exponents, pointwise, sparse
from lm.softmax.weighting import ANY, ONE_TO_TWO, POSITIVE, Weighting


def _half(**_: object) -> float:
    return 0.5


WEIGHTINGS: dict[str, Weighting] = {
    "softmax": Weighting(dense.softmax, lipschitz=_half, exponents=exponents.softmax),
    "temperature": Weighting(
        dense.temperature,
        lipschitz=lambda temperature=1.0: 0.5 / temperature,
        learnable={"temperature": POSITIVE},
        exponents=exponents.temperature,
    ),
    "softcap": Weighting(
        dense.softcap,
        shift_invariant=False,
        lipschitz=_half,
        learnable={"cap": POSITIVE},
        exponents=exponents.softcap,
    ),
    "log_length": Weighting(dense.log_length, exponents=exponents.log_length),
    # The initial scale keeps scores as large as they are: 0.168 is 1 / mean of log n, n to 1024.
    "ssmax": Weighting(
        dense.ssmax, learned={"scale": initializers.constant(0.168)}, exponents=exponents.ssmax
    ),
    "off_by_one": Weighting(
        dense.off_by_one,
        normalised=False,
        shift_invariant=False,
        lipschitz=_half,
        exponents=exponents.softmax,
        sink=True,
    ),
    "sink": Weighting(
        dense.sink,
        normalised=False,
        shift_invariant=False,
        lipschitz=_half,
        learned={"sink": initializers.zeros},
        exponents=exponents.softmax,
        sink=True,
    ),
    "taylor": Weighting(
        dense.taylor,
        shift_invariant=False,
        monotone=False,
        exponents=exponents.taylor,
        terms=exponents.taylor_series,
    ),
    "sigmoid": Weighting(
        pointwise.sigmoid,
        normalised=False,
        shift_invariant=False,
        lipschitz=lambda **_: 0.25,
        learnable={"bias": ANY},
        pointwise=True,
    ),
    "relu": Weighting(
        pointwise.relu,
        sparse=True,
        normalised=False,
        shift_invariant=False,
        lipschitz=lambda: 1.0,
        pointwise=True,
    ),
    "relu_squared": Weighting(
        pointwise.relu_squared, sparse=True, normalised=False, shift_invariant=False, pointwise=True
    ),
    "softplus_l1": Weighting(
        dense.softplus_l1, shift_invariant=False, exponents=exponents.softplus_l1
    ),
    "sparsemax": Weighting(
        sparse.sparsemax, sparse=True, lipschitz=lambda: 2.0, entmax_alpha=lambda: 2.0
    ),
    "entmax15": Weighting(
        sparse.entmax15, sparse=True, lipschitz=lambda: 2.0, entmax_alpha=lambda: 1.5
    ),
    "entmax": Weighting(
        sparse.entmax,
        sparse=True,
        lipschitz=lambda alpha=1.5: 2.0 if alpha <= 2.0 else math.inf,
        learnable={"alpha": ONE_TO_TWO},
        entmax_alpha=sparse.checked_alpha,
    ),
    "alpha_relu": Weighting(
        sparse.alpha_relu, sparse=True, normalised=False, shift_invariant=False, pointwise=True
    ),
    # It starts as the entmax.
    "asentmax": Weighting(
        sparse.asentmax,
        sparse=True,
        learnable={"alpha": ONE_TO_TWO},
        learned={"beta": initializers.zeros, "gamma": initializers.ones},
    ),
    "normmax": Weighting(bisection.normmax, sparse=True),
    "budget": Weighting(bisection.budget, sparse=True, normalised=False, lipschitz=lambda **_: 2.0),
    "top_k": Weighting(sparse.top_k, sparse=True, top_k=True),
    "gumbel_softmax": Weighting(
        dense.gumbel_softmax, random=True, learnable={"temperature": POSITIVE}
    ),
    "softpick": Weighting(
        dense.softpick,
        normalised=False,
        sparse=True,
        shift_invariant=False,
        exponents=exponents.softpick,
        factor=exponents.is_positive,
    ),
    "cog": Weighting(
        dense.cog,
        signed=True,
        shift_invariant=False,
        exponents=exponents.cog,
        factor=exponents.sign,
    ),
}

__all__ = ["WEIGHTINGS", "Weighting"]
