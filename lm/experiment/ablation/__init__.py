"""Ablations: the points of a config file's sweep(), their training, and the table of results."""

from lm.experiment.ablation.folders import find_folders
from lm.experiment.ablation.points import Ablation, load_ablation, make_points
from lm.experiment.ablation.report.compare import join_ablations
from lm.experiment.ablation.report.output import View, report_tables
from lm.experiment.ablation.report.recorded import Ablated, read_ablation
from lm.experiment.ablation.report.table import to_markdown
from lm.experiment.ablation.sweep import train_points
from lm.experiment.ablation.variation import Variation

__all__ = [
    "Ablated",
    "Ablation",
    "Variation",
    "View",
    "find_folders",
    "join_ablations",
    "load_ablation",
    "make_points",
    "read_ablation",
    "report_tables",
    "to_markdown",
    "train_points",
]
