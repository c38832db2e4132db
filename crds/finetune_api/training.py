"""How long, in what batches and in which precision a model trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Epochs, MaxNorm, Model, Rule, Seed, Steps, at_most_one_of, not_yet_supported

Precision = Literal["Auto", "FP32", "BF16", "FP16"]
BatchSize = Annotated[int, Field(ge=1, le=16_777_216)]


class Training(Model):
    """The training run as a whole; what differs between modules is in `modules`."""

    rules = (
        at_most_one_of("epochs", "steps", report="steps"),
        Rule(
            field="microBatchSize",
            message="microBatchSize must divide batchSize (default 32)",
            cel="!has(self.microBatchSize) || (has(self.batchSize) ? self.batchSize : 32) % self.microBatchSize == 0",
            is_valid=lambda training: (
                training.micro_batch_size is None or training.batch_size % training.micro_batch_size == 0
            ),
        ),
        not_yet_supported(
            "compile", "compile", "!has(self.compile) || !self.compile", lambda training: not training.compile
        ),
    )

    epochs: Epochs | None = None
    """Passes over the training set (3 when neither epochs nor steps is set)."""
    steps: Steps | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: BatchSize = 32
    """Samples per optimizer step, over all devices."""
    micro_batch_size: BatchSize | None = None
    """Samples one device takes at once (default: batchSize / devices); the rest is accumulated."""
    precision: Precision = "Auto"
    """What computes; trainable weights and optimizer state stay FP32. Auto: BF16 where the GPU has it, else FP32."""
    clip_grad_norm: MaxNorm | None = None
    """Largest gradient norm over all modules, after the modules' own clipping."""
    seed: Seed = 0
    """Seed of everything random: shuffling, dropout, fresh weights."""
    deterministic: bool = False
    """Only deterministic algorithms: bit-exact on a GPU too, and slower."""
    compile: bool = False
    """Compile the model (torch.compile)."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
