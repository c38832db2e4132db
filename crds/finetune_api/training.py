"""Duration, batch size and precision of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Epochs, MaxNorm, Model, Rule, Seed, Steps, at_most_one_of, not_yet_supported

Precision = Literal["Auto", "FP32", "BF16", "FP16"]
BatchSize = Annotated[int, Field(ge=1, le=16_777_216)]


class Training(Model):
    """Hyperparameters that apply to all modules."""

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
    """Number of passes over the training set; may be fractional. Mutually exclusive with steps. Defaults to 3 if steps
    is not set."""
    steps: Steps | None = None
    """Number of optimizer steps. Mutually exclusive with epochs. If not set, the number follows from epochs."""
    batch_size: BatchSize = 32
    """Number of samples per optimizer step, over all devices. The last incomplete batch of an epoch is dropped."""
    micro_batch_size: BatchSize | None = None
    """Number of samples per forward and backward pass. Gradients are accumulated over batchSize / microBatchSize
    passes. Must divide batchSize. Defaults to batchSize."""
    precision: Precision = "Auto"
    """Data type of the computation. Trainable weights and optimizer state are always FP32; weights that are never
    trained keep a 16-bit type of `model.source` if the computation is 16-bit. Auto is BF16 on GPUs that support it, and
    FP32 otherwise."""
    clip_grad_norm: MaxNorm | None = None
    """Maximum gradient norm over all modules, applied after the clipGradNorm of each module. If not set, gradients are
    not clipped."""
    seed: Seed = 0
    """Random seed of shuffling, dropout and newly initialized weights."""
    deterministic: bool = False
    """Whether to use deterministic algorithms only (`torch.use_deterministic_algorithms`). Slower, but runs on a GPU
    are bit-exact."""
    compile: bool = False
    """Whether to compile the model with `torch.compile`."""
    activation_checkpointing: bool = False
    """Whether to recompute activations in the backward pass instead of storing them, which needs less memory and more
    time."""
