"""The interval of a row's own value, which counts both its seeds and the held-out documents."""

import json
import math
from collections.abc import Sequence

import numpy as np
from etils import epath

from lm.evaluation.document_totals import FILE
from lm.experiment.ablation.statistics.significance import t_limit

BY_DOCUMENT = "eval/bits_per_byte"  # the metric whose sums by document are kept


def value_interval(workdirs: Sequence[epath.Path]) -> tuple[float, float] | None:
    """The 95 % interval of the bits per byte of finished runs that differ in the seed alone; None
    for fewer than two runs, and where sums by document are not there for the same documents.
    """
    sums = [read_sums(workdir) for workdir in workdirs]
    if len(sums) < 2 or any(each is None for each in sums):
        return None
    nats, sizes = zip(*(each for each in sums if each is not None), strict=True)
    if any(not np.array_equal(each, sizes[0]) for each in sizes) or len(sizes[0]) < 2:
        return None
    return two_way_interval(np.array(nats) / math.log(2), sizes[0])


def read_sums(workdir: epath.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Nats and bytes of each group of documents [G], of the run's documents.json."""
    try:
        found = json.loads((workdir / FILE).read_text())
        nats, sizes = (np.array(found[key], float) for key in ("nats", "bytes"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (nats, sizes) if nats.shape == sizes.shape and np.isfinite(nats).all() else None


def two_way_interval(bits: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of bits per byte over other seeds and other documents.

    With b [S, G] the bits of group g under seed s, w [G] its bytes, h = w / sum w, the estimate
    R = sum b / (S sum w), and the shares `u_sg = (b_sg - R w_g) / sum w / (1 - h_g)`,

        V = V_seed + V_document - V_both,
        V_seed = sum_s (R_s - R)^2 / (S (S - 1)), of the values R_s of single seeds,
        V_document = sum_g (mean_s u_sg)^2,
        V_both = sum_sg (u_sg - mean_s u_sg)^2 / (S (S - 1)), what both of the former count.

    V is at least the larger of the former two. The interval is R +- t(0.975, df) sqrt(V), with
    Satterthwaite's `df = V^2 / (V_seed^2 / (S - 1) + V_document^2 / (G' - 1))`, where
    G' = 1 / sum h^2 is how many groups of one size count as much. Seeds and documents are both
    drawn, as by the two-way clustering of Cameron, Gelbach and Miller 2011
    (doi:10.1198/jbes.2010.07136); 1 - h_g makes up for the weight of a group in R (as HC3).
    """
    seeds, total = len(bits), sizes.sum()
    values, weights = bits.sum(axis=1) / total, sizes / total
    ratio = float(values.mean())
    shares = (bits - ratio * sizes) / total / (1 - weights)
    by_group = shares.mean(axis=0)
    of_seeds = float(np.var(values, ddof=1)) / seeds
    of_groups = float((by_group**2).sum())
    of_both = float(((shares - by_group) ** 2).sum()) / (seeds * (seeds - 1))
    variance = max(of_seeds + of_groups - of_both, of_seeds, of_groups)
    effective = 1 / float((weights**2).sum())
    spread = of_seeds**2 / (seeds - 1) + of_groups**2 / (effective - 1)
    df = variance**2 / spread if spread else math.inf
    half = t_limit(df) * math.sqrt(variance)
    return ratio - half, ratio + half
