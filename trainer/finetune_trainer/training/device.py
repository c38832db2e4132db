"""What computes, and in which precision. Weights and optimizer state are FP32 always; this is about the rest."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from finetune_api.defaults import EffectiveSpec
from finetune_trainer.errors import OutOfGPUMemory, UserError

DTYPES = {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": None}


@dataclass(frozen=True)
class Compute:
    """The device, and the type that matrix products are computed in (None: as the weights)."""

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def move(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}


def choose(spec: EffectiveSpec) -> Compute:
    """The device and precision of an effective job.

    Raises:
        UserError: a GPU is wanted, and there is none that works.
    """
    if spec.resources.device == "CPU":
        return Compute(
            torch.device("cpu"), None if spec.training.precision == "Auto" else DTYPES[spec.training.precision]
        )
    if not torch.cuda.is_available():
        raise UserError(
            "resources.device is CUDA, but no GPU works here; to train on the CPU say resources.gpusPerNode: 0 "
            "(--set resources.gpusPerNode=0)"
        )
    automatic = "BF16" if torch.cuda.is_bf16_supported(including_emulation=False) else "FP32"
    precision = automatic if spec.training.precision == "Auto" else spec.training.precision
    return Compute(torch.device("cuda"), DTYPES[precision])


def set_determinism(deterministic: bool) -> None:
    """Only deterministic algorithms, or the fastest ones."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def out_of_memory(spec: EffectiveSpec, error: torch.OutOfMemoryError) -> OutOfGPUMemory:
    """What would help when the GPU's memory is full."""
    size = spec.training.micro_batch_size
    smaller = "batchSize" if spec.task == "Contrastive" else "microBatchSize"
    precision = "" if spec.training.precision in ("BF16", "FP16") else ", or set training.precision to BF16"
    return OutOfGPUMemory(
        f"the GPU's memory does not hold {size} samples at once: lower training.{smaller} (try {max(1, size // 2)})"
        f"{precision}, or freeze more of the model ({str(error).split('. ')[0]})"
    )


@dataclass
class LossScale:
    """Keeps FP16 gradients from vanishing: one scale for all modules, since a step is skipped for all or for none.

    torch's GradScaler decides for each optimizer on its own, which would tear the modules apart.
    """

    value: float = 1.0
    good_steps: int = 0
    dynamic: bool = False

    @classmethod
    def of(cls, compute: Compute) -> LossScale:
        scaled = compute.dtype == torch.float16
        return cls(value=2.0**16 if scaled else 1.0, dynamic=scaled)

    def update(self, finite: bool, patience: int = 2000) -> None:
        """Halve it after an overflow, double it after many steps without one."""
        if not self.dynamic:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.good_steps == patience:
            self.value, self.good_steps = self.value * 2, 0
