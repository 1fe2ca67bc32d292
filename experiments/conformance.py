"""Checks implementations of softmax and its relatives by the laws of lm.softmax.laws.

Command  pip install -e ".[parity]"
         python experiments/conformance.py
Writes   experiments/results/conformance.json and conformance.md

The laws are those of lm/softmax/laws.py, with the same scores and tolerances, tried on every
weighting of this project and on those outside ones that are installed. A law that does not apply
to a subject, such as one of masks to a function without them, is left blank.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import sys
import warnings

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from lm.softmax import WEIGHTINGS, Weighting
from lm.softmax.laws import LAWS, Subject, jax_subject
from lm.softmax.oracles import oracle

# What our learned kinds need, and k below the number of places.
OPTIONS = {"ssmax": {"scale": 0.3}, "sink": {"sink": 0.3}, "top_k": {"k": 4}}
SPARSE = Weighting(lambda scores: scores, sparse=True)
DENSE = Weighting(lambda scores: scores)


def torch_subject(name: str, function, formula: str, facts: Weighting, **options) -> Subject:
    """A torch function over the last axis, which has no mask, as a subject."""
    import torch

    def weights(scores, where):
        return function(torch.as_tensor(np.asarray(scores))).detach().numpy()

    def gradient(scores, where, direction):
        tensor = torch.tensor(np.asarray(scores), requires_grad=True)
        total = (function(tensor) * torch.as_tensor(direction)).sum()
        return torch.autograd.grad(total, tensor)[0].numpy()

    def expected(scores, where):
        return oracle(formula, scores, where, **options)

    return Subject(name, weights, expected, facts, gradient, masks=False)


def outside() -> list[Subject]:
    """Those that are installed."""

    def masked(scores, where=None):
        return jax.nn.softmax(scores, where=where)

    found = [jax_subject("jax.nn.softmax", Weighting(masked), "softmax")]
    with contextlib.suppress(ImportError):
        from optax.projections import projection_simplex

        def project(scores, where=None):
            return jax.vmap(projection_simplex)(scores) if scores.ndim > 1 else scores

        subject = jax_subject(
            "optax projection_simplex", Weighting(project, sparse=True), "sparsemax"
        )
        # It maps a vector, and takes no mask.
        found.append(Subject(**{**vars(subject), "masks": False, "eager": None}))
    with contextlib.suppress(ImportError):
        import torch

        found.append(
            torch_subject("torch.softmax", lambda s: torch.softmax(s, -1), "softmax", DENSE)
        )
    with contextlib.suppress(ImportError):
        import entmax

        found += [
            torch_subject(
                "entmax.sparsemax", lambda s: entmax.sparsemax(s, -1), "sparsemax", SPARSE
            ),
            torch_subject("entmax.entmax15", lambda s: entmax.entmax15(s, -1), "entmax15", SPARSE),
            torch_subject(
                "entmax.entmax_bisect 1.25",
                lambda s: entmax.entmax_bisect(s, 1.25, -1),
                "entmax",
                SPARSE,
                alpha=1.25,
            ),
        ]
    return found


def judge(subject: Subject) -> dict[str, dict]:
    """Law -> violation, tolerance and whether it holds; an exception is told as one."""
    verdicts = {}
    for law, (check, tolerance) in LAWS.items():
        try:
            violation = check(subject)
        except Exception as error:
            verdicts[law] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
            continue
        if violation is not None:
            passed = bool(violation <= tolerance)
            verdicts[law] = {"violation": violation, "tolerance": tolerance, "passed": passed}
    return verdicts


def cell(verdict: dict | None) -> str:
    """Pass, FAIL with the violation, or blank where the law does not apply."""
    if verdict is None:
        return ""
    if "error" in verdict:
        return "ERROR"
    return "pass" if verdict["passed"] else f"FAIL {verdict['violation']:.0e}"


def main() -> None:
    """Prints the scorecard and writes it with the versions."""
    from lm.experiment.provenance import commit, versions

    warnings.simplefilter("ignore")
    subjects = [jax_subject(name, f, **OPTIONS.get(name, {})) for name, f in WEIGHTINGS.items()]
    results = {}
    for subject in (*subjects, *outside()):
        results[subject.name] = judge(subject)
        print(subject.name, *(f"{k}: {cell(v)};" for k, v in results[subject.name].items()))
    packages = {}
    for name in ("torch", "entmax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    folder = pathlib.Path(__file__).parent / "results"
    record = {"commit": commit(), "versions": versions() | packages, "subjects": results}
    # JSON has no infinity.
    text = json.dumps(record, indent=1).replace("Infinity", '"infinite"')
    (folder / "conformance.json").write_text(text + "\n")
    known = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [
        "# Laws of weightings",
        "",
        "Written by experiments/conformance.py. FAIL is followed by the violation (inf: not finite",
        f"or not of the declared kind); blank: does not apply. {known}.",
        "",
        "| | " + " | ".join(LAWS) + " |",
        "|---" * (len(LAWS) + 1) + "|",
    ]
    for name, verdicts in results.items():
        lines.append(f"| {name} | " + " | ".join(cell(verdicts.get(law)) for law in LAWS) + " |")
    (folder / "conformance.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
