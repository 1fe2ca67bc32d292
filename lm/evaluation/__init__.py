"""How good a model is: likelihoods, task metrics, prompts, and diagnostics."""
