"""Ranks of the log-probabilities of heads with random parameters (1711.03953, 1805.10829)."""

import jax
import numpy as np
from etils import epath

from lm.evaluation.diagnostics.spectrum import spectra, token_blocks
from lm.output import OUTPUTS

SEEDS = (0, 1, 2)
FEATURES, TOKENS, CONTEXTS = 16, 256, 512
HEADS = {
    "softmax": {},
    "mixture_of_contexts": {"mixtures": 8},
    "mixture": {"mixtures": 8},
    "sigsoftmax": {},
}


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """The numeric rank of the log-probabilities of each head, [CONTEXTS, TOKENS]."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(CONTEXTS, FEATURES)).astype(np.float32)
    found = {}
    for name, options in HEADS.items():
        init = jax.nn.initializers.normal(1.0)
        head = OUTPUTS[name](TOKENS, FEATURES, table_init=init, **options)
        params = head.init(jax.random.key(seed), hidden[:1], method="log_probs")
        log_probs = jax.jit(lambda h, head=head, p=params: head.apply(p, h, method="log_probs"))
        whole, _ = spectra(token_blocks(log_probs, hidden, TOKENS))
        found[name] = whole.rank
    return found
