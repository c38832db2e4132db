"""Compute resources of the trainer pods, and retries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import EXTENDED_RESOURCE, Model, Quantity, Rule, not_yet_supported

ExtendedResource = Annotated[str, StringConstraints(min_length=3, max_length=253, pattern=EXTENDED_RESOURCE)]

Device = Literal["CUDA", "CPU"]


class Resources(Model):
    """Compute resources of one attempt."""

    rules = (
        Rule(
            field="device",
            message="device CUDA requires gpusPerNode to be at least 1",
            cel="!has(self.device) || self.device != 'CUDA' || !has(self.gpusPerNode) || self.gpusPerNode > 0",
            is_valid=lambda resources: resources.device != "CUDA" or resources.gpus_per_node > 0,
        ),
        not_yet_supported(
            "nodes",
            "more than one node",
            "!has(self.nodes) || self.nodes == 1",
            lambda resources: resources.nodes == 1,
        ),
        not_yet_supported(
            "gpusPerNode",
            "more than one GPU",
            "!has(self.gpusPerNode) || self.gpusPerNode <= 1",
            lambda resources: resources.gpus_per_node <= 1,
        ),
    )

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of trainer pods."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of GPUs per trainer pod."""
    device: Device | None = None
    """Device to train on. With CUDA, the run fails if no GPU is available. Defaults to CUDA if gpusPerNode is greater
    than 0, and to CPU otherwise."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """Name of the extended resource for GPUs."""
    cpu: Quantity | None = None
    """CPU request per trainer pod, which also sets the number of threads (`OMP_NUM_THREADS`). There is no CPU limit.
    Defaults to `trainer.resources.cpu` of the Helm chart."""
    memory: Quantity | None = None
    """Memory request and limit per trainer pod. Defaults to `trainer.resources.memory` of the Helm chart."""
    ephemeral_storage: Quantity | None = None
    """Ephemeral storage request and limit per trainer pod. Defaults to `trainer.resources.ephemeralStorage` of the Helm
    chart."""
    shared_memory: Quantity | None = None
    """Size limit of /dev/shm, through which data workers pass batches. It counts towards memory. Defaults to
    `trainer.resources.sharedMemory` of the Helm chart."""


class Retry(Model):
    """Retries of failed attempts. A retry is a new attempt that resumes from the last checkpoint."""

    limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Number of retries before the job is marked as failed. Crashes, stalls and evictions for exceeding a storage limit
    count. Suspension and disruptions, such as preemption, node drain and node-pressure eviction, do not."""
    backoff_seconds: Annotated[int, Field(ge=1, le=86_400)] = 10
    """Delay in seconds before the first retry. It doubles with every further attempt that ends within 10 minutes, up to
    300 seconds or backoffSeconds, whichever is longer."""
