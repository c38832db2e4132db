"""The device, the precision of the computation, and the loss scale."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from finetune_api.defaults import EffectiveSpec
from finetune_trainer.errors import OutOfGPUMemory, UserError

AUTOCAST_DTYPES = {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": None}


@dataclass(frozen=True)
class DeviceConfig:
    """Where and in which precision a run computes.

    Args:
        device: device of the model.
        autocast_dtype: type of matrix products and convolutions; None for FP32.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def move(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy a batch to the device, asynchronously from pinned memory."""
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}


def select_device(spec: EffectiveSpec) -> DeviceConfig:
    """The device and precision of a job.

    Raises:
        UserError: the job needs a GPU, and there is no usable one.
    """
    precision = spec.training.precision
    if spec.resources.device == "CPU":
        return DeviceConfig(torch.device("cpu"), AUTOCAST_DTYPES["FP32" if precision == "Auto" else precision])
    if not torch.cuda.is_available():
        raise UserError(
            "resources.device: CUDA, but no usable GPU was found; to train on the CPU, set resources.gpusPerNode: 0 "
            "(--set resources.gpusPerNode=0)"
        )
    fastest = "BF16" if torch.cuda.is_bf16_supported(including_emulation=False) else "FP32"
    return DeviceConfig(torch.device("cuda"), AUTOCAST_DTYPES[fastest if precision == "Auto" else precision])


def set_determinism(deterministic: bool) -> None:
    """Use only deterministic algorithms, or the fastest ones."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by deterministic cuBLAS
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False


def explain_nondeterminism(error: Exception) -> UserError | None:
    """The error for an operation that `training.deterministic` forbids; None for any other error."""
    text = str(error)
    if "uses CuBLAS" in text:
        return UserError(
            "training.deterministic: true needs the environment variable CUBLAS_WORKSPACE_CONFIG to be :4096:8 or "
            f":16:8, but it is {os.environ.get('CUBLAS_WORKSPACE_CONFIG')!r}; remove it from runtime.env"
        )
    found = re.match(r"(\S+) does not have a deterministic implementation", text)
    if found is None:
        return None
    return UserError(
        f"training.deterministic: true, but the model uses the operation {found[1]}, which has no deterministic "
        "implementation on this device; set training.deterministic: false"
    )


def explain_out_of_memory(spec: EffectiveSpec, error: torch.OutOfMemoryError) -> OutOfGPUMemory:
    """The error that names the settings with which a run needs less GPU memory."""
    size = spec.training.micro_batch_size
    field = "batchSize" if spec.task == "Contrastive" else "microBatchSize"
    precision = "" if spec.training.precision in ("BF16", "FP16") else ", set training.precision to BF16"
    return OutOfGPUMemory(
        f"out of GPU memory with micro-batches of {size} samples: lower training.{field} (try {max(1, size // 2)})"
        f"{precision}, or freeze more modules ({str(error).split('. ')[0]})"
    )


@dataclass
class LossScale:
    """Dynamic loss scaling for FP16, whose small gradients would underflow. Always 1 in other precisions.

    It is our own because torch.amp.GradScaler decides for each optimizer whether to skip a step; here a step is skipped
    for all modules or for none, so that they stay in sync.

    Args:
        scale: factor of the loss; a power of two.
        good_steps: consecutive finite steps since the scale changed.
        is_dynamic: whether the scale changes.
    """

    scale: float = 1.0
    good_steps: int = 0
    is_dynamic: bool = False

    @classmethod
    def for_device(cls, device: DeviceConfig) -> LossScale:
        is_fp16 = device.autocast_dtype == torch.float16
        return cls(scale=2.0**16 if is_fp16 else 1.0, is_dynamic=is_fp16)

    @property
    def can_be_halved(self) -> bool:
        """Whether gradients that are not finite may be so only because of the scale."""
        return self.is_dynamic and self.scale > 1.0

    def restore(self, scale: float, good_steps: int) -> None:
        """Continue from the scale of a checkpoint, unless the precision then or now needs none."""
        was_dynamic = (scale, good_steps) != (1.0, 0)
        if self.is_dynamic and was_dynamic:
            self.scale, self.good_steps = scale, good_steps

    def update(self, is_finite: bool, growth_interval: int = 2000) -> None:
        """Halve the scale after a step that was not finite; double it after `growth_interval` finite ones."""
        if not self.is_dynamic:
            return
        self.good_steps = self.good_steps + 1 if is_finite else 0
        if not is_finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps == growth_interval:
            self.scale, self.good_steps = self.scale * 2, 0
