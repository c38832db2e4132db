"""What the trainer pods ask for, and what happens after a crash."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import EXTENDED_RESOURCE, Model, Quantity, Rule, not_yet_supported

ExtendedResource = Annotated[str, StringConstraints(min_length=3, max_length=253, pattern=EXTENDED_RESOURCE)]

Device = Literal["CUDA", "CPU"]


class Resources(Model):
    """Nodes, GPUs and the rest, for one attempt."""

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
    """Trainer pods, each on a node of its own choosing."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs per pod."""
    device: Device | None = None
    """What computes (default: CUDA when gpusPerNode > 0); CUDA without a working GPU fails."""
    gpu_resource: ExtendedResource = "nvidia.com/gpu"
    """The extended resource that a GPU is asked for by."""
    cpu: Quantity | None = None
    """CPUs per pod: requested, and as many threads; not limited."""
    memory: Quantity | None = None
    """Memory per pod, requested and limited."""
    ephemeral_storage: Quantity | None = None
    """Scratch space per pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm."""


class Retry(Model):
    """What happens after a crash: a new attempt that resumes from the last checkpoint."""

    limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Crashes that are retried; interruptions (eviction, preemption) do not count."""
    backoff_seconds: Annotated[int, Field(ge=1, le=86_400)] = 10
    """Wait before the first retry; doubles with each, up to 300."""
