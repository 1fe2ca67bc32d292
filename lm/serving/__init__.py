"""Serves a trained model over HTTP: completions, chat, likelihoods, embeddings and predictions.

What imports the packages of the extra `serve` (FastAPI, uvicorn, prometheus-client) stands below
`lm.serving.http`; the rest computes, and needs none of them.
"""
