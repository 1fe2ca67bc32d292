"""Where a formula is also another library's, weights and gradients are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.softmax import WEIGHTINGS

CASES = {
    "softmax": ("softmax", {}),
    "sparsemax": ("sparsemax", {}),
    "entmax15": ("entmax15", {}),
    "entmax 1.25": ("entmax", {"alpha": 1.25}),
    "entmax 1.9": ("entmax", {"alpha": 1.9}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_torch_and_entmax_agree(case, scale, dtype, tolerance):
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    name, options = CASES[case]
    theirs = {
        "softmax": lambda s: torch.softmax(s, -1),
        "sparsemax": lambda s: entmax.sparsemax(s, -1),
        "entmax15": lambda s: entmax.entmax15(s, -1),
        "entmax": lambda s: entmax.entmax_bisect(s, options["alpha"], -1, n_iter=100),
    }[name]
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(7, 60)) * scale).astype(dtype)
    value = rng.uniform(-1.0, 1.0, scores.shape).astype(dtype)
    # The reference is theirs in float64: in float32 the sums of its bisection are less exact.
    tensor = torch.tensor(scores.astype(np.float64), requires_grad=True)
    expected = theirs(tensor)
    (expected * torch.tensor(value)).sum().backward()
    with jax.enable_x64(True):
        actual, pull = jax.vjp(lambda s: WEIGHTINGS[name].apply(s, **options), jnp.asarray(scores))
        np.testing.assert_allclose(actual, expected.detach(), atol=tolerance)
        np.testing.assert_allclose(pull(jnp.asarray(value))[0], tensor.grad, atol=tolerance)
