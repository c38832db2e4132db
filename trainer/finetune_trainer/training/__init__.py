"""The training run: load, train, evaluate, save checkpoints, export."""
