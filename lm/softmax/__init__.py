"""How do scores become weights? `WEIGHTINGS` maps every variant's name to its record.

Adding a softmax is one function in this package, one entry in the table below, and one line in a
config's `sweep()`; the laws in `tests/` then hold it to its declared facts.
"""

from flax.linen import initializers

from lm.softmax.dense import off_by_one, sigmoid, sink, softcap, softmax, temperature
from lm.softmax.sparse import entmax15, sparsemax
from lm.softmax.weighting import Weighting

WEIGHTINGS = {
    "softmax": Weighting(softmax),
    "temperature": Weighting(temperature),
    "softcap": Weighting(softcap, shift_invariant=False),
    "off_by_one": Weighting(off_by_one, normalised=False, shift_invariant=False),
    "sink": Weighting(
        sink,
        normalised=False,
        shift_invariant=False,
        learned={"sink": initializers.zeros},
    ),
    "sigmoid": Weighting(sigmoid, normalised=False, shift_invariant=False),
    "sparsemax": Weighting(sparsemax, sparse=True),
    "entmax15": Weighting(entmax15, sparse=True),
}

__all__ = ["WEIGHTINGS", "Weighting"]
