"""Continual learning: chains of runs over several tasks, their checks, and forgetting."""
