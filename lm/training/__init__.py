"""How parameters are updated: losses, optimizers, the training step and its state."""
