"""Ablations: the points of a config file's sweep(), their training, and the table of results."""

from lm.experiment.ablation.folders import find_folders
from lm.experiment.ablation.points import Ablation, load_ablation, make_points
from lm.experiment.ablation.sweep import train_points
from lm.experiment.ablation.table import report_tables, to_markdown, write_tables
from lm.experiment.ablation.variation import Variation

__all__ = [
    "Ablation",
    "Variation",
    "find_folders",
    "load_ablation",
    "make_points",
    "report_tables",
    "to_markdown",
    "train_points",
    "write_tables",
]
