"""Softmax regression by our head, its loss and L-BFGS, beside scikit-learn's LogisticRegression."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy.optimize import minimize
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lm.output import OUTPUTS

SEEDS = (0, 1, 2)
DATA = {"iris": load_iris, "wine": load_wine, "digits": load_digits}
TRAIN = 0.75  # of the examples


def measure(seed: int, folder: epath.Path) -> dict[str, float]:
    """Differences of losses, weights, probabilities and accuracies, for a split of each set."""
    found = {}
    for name, load in DATA.items():
        features, labels = map(np.asarray, load(return_X_y=True))
        order = np.random.default_rng(seed).permutation(len(labels))
        train, test = np.split(order, [int(TRAIN * len(order))])
        x = np.asarray(StandardScaler().fit(features[train]).transform(features))
        y = labels
        theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=20_000).fit(x[train], y[train])
        with jax.enable_x64(True):
            table, bias = regression(x[train], y[train], seed)
        z = x @ table.T + bias
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        q = theirs.predict_proba(x)
        objectives = [
            penalised_loss(x[train], y[train], *each)
            for each in ((table, bias), (theirs.coef_, theirs.intercept_))
        ]
        found[f"{name}_objective"] = objectives[0] / objectives[1] - 1
        found[f"{name}_weights"] = np.abs(table - theirs.coef_).max()
        found[f"{name}_probabilities"] = np.abs(p[test] - q[test]).max()
        hits = [np.mean(each[test].argmax(axis=1) == y[test]) for each in (p, q)]
        found[f"{name}_accuracy"] = hits[0] - hits[1]
    return found


def penalised_loss(x: np.ndarray, y: np.ndarray, table: np.ndarray, bias: np.ndarray) -> float:
    """What both minimise, in float64: the sum of losses, and half the squared weights."""
    z = x @ table.T + bias
    top = z.max(axis=1)
    normaliser = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
    return float((normaliser - z[np.arange(len(y)), y]).sum() + np.square(table).sum() / 2)


def regression(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The table [K, D] and bias [K] of our softmax head at the minimum, from a random start."""
    options = {"bias": True, "param_dtype": jnp.float64}
    head = OUTPUTS["softmax"](int(y.max()) + 1, x.shape[1], **options)
    hidden, targets = jnp.asarray(x), jnp.asarray(y)
    params = head.init(jax.random.key(seed), hidden, targets, method="loss")["params"]
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    @jax.value_and_grad
    def loss(flat):
        params = unflatten(flat)
        losses: Any = head.apply({"params": params}, hidden, targets, method="loss")
        return jnp.sum(losses) + jnp.sum(params["table"] ** 2) / 2

    def value_and_slope(point):
        value, slope = loss(jnp.asarray(point))
        return float(value), np.asarray(slope)

    tight = {"maxiter": 5000, "ftol": 0.0, "gtol": 1e-8}
    best = minimize(value_and_slope, flat, jac=True, method="L-BFGS-B", options=tight).x
    found = unflatten(jnp.asarray(best))
    return np.asarray(found["table"]), np.asarray(found["bias"])
