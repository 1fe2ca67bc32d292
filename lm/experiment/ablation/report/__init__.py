"""The report of an ablation: one HTML page with tables and figures, which needs no network."""

from lm.experiment.ablation.report.page import make_page

__all__ = ["make_page"]
