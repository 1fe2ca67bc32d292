"""What a comparison holds: a table of rows."""

import dataclasses

from etils import epath


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant. Numbers are over its finished seeds; None means unknown."""

    label: str
    n: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # the metric, seed by seed
    workdirs: tuple[epath.Path, ...]
    mean: float | None
    standard_error: float | None  # of the mean; None with fewer than two seeds
    pairs: tuple[int, ...]  # the seeds that the baseline has finished too
    difference: float | None  # row minus baseline, mean over pairs
    difference_error: float | None  # its standard error; None without an interval
    interval: tuple[float, float] | None  # 95 %, of this difference alone
    p: float  # of the paired t-test; 1 where there is none
    p_holm: float  # the same, adjusted for all the rows
    verdict: str
    parameters: int | None
    trained_parameters: int | None
    flops_per_token: float | None
    memory: float | None  # bytes of the compiled step on a device, arguments and temporaries
    seconds: float | None  # wall time of a run, median over seeds; of whatever machine it had
    missing: int  # points of this row without a usable result
    value_interval: tuple[float, float] | None = None  # 95 %, of other seeds and documents
    baseline: str = ""  # the label of the row that this one is compared with; "": it is a baseline
    p_moderated: float | None = None  # of the moderated t-test, adjusted for all the rows
    p_equivalent: float = 1.0  # of two one-sided tests against the margin, likewise
    smallest_effect: float | None = None  # found with 80 % probability
    seeds_needed: int | None = None  # to find a difference as large as the margin as often
    far_seeds: tuple[int, ...] = ()  # whose difference is far from that of the others
    step_ratio: float | None = None  # time of a step to the baseline's, measured in turns
    rank: tuple[int, int, int] | None = None  # in a screen: place, and the ends of its interval


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in the order of the points; notes; the points that are missing, and why."""

    metric: str
    unit: str
    better: str  # "lower" or "higher"
    baseline: str  # the first, where groups of rows have one each
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    margin: float | None = None  # the largest difference that does not matter
    against: tuple[str, ...] = ()  # config keys; the first row with the same values is a baseline
    matched: str = ""  # the quantity in which rows were made equal instead of tokens seen
    protocol: str = "confirm"  # or "screen": ranks instead of verdicts
    comparisons: int = 0  # of rows with their baselines, also those that are not shown

    @property
    def compared_with(self) -> str:
        """What a row's difference is from, in words."""
        if not self.against:
            return self.baseline
        return f"the first row of the same {' and '.join(self.against)}"
