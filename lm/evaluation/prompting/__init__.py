"""What does a language model know of a task that it was not trained for? Its examples are written
out by a template, after a few that are answered; of the answers, the likeliest is the model's.

`ask.py` has the whole of it, `score.py` the likelihoods.
"""
