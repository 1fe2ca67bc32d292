"""What a training step costs: FLOPs, memory, and the code paths that it takes."""
