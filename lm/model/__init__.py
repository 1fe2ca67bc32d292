"""The network: embeddings, Transformer blocks, and the modules around the output head."""
