"""Ablations: sweeps over rows and seeds, and the table that compares them."""
