"""The training run: trainer loop, optimizers, checkpoints, export."""
