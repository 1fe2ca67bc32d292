"""Exports a run for other runtimes, with a certificate of how far their numbers are from ours."""
