"""The page of an ablation: tables and figures in one HTML file, which needs no network."""

from lm.experiment.ablation.report.html.page import make_page

__all__ = ["make_page"]
