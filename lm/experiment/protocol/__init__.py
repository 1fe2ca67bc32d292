"""How the rows of an ablation are made comparable: matched, tuned, screened and confirmed."""
