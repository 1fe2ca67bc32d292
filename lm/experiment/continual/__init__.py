"""What remains of a task when others are learned after it? Chains of runs, one for each task
(`chain`), what holds on to earlier tasks (`importance`; replay is in `lm.tasks.sampling`), and how
much was forgotten (`forgetting`).
"""
