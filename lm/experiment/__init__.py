"""Which runs are made and what they show: run directories, sweeps, and tables."""
