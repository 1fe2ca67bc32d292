"""Evaluates language models by prompts: zero-shot and few-shot, by the likelihood of answers."""
