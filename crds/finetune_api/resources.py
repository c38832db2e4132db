"""What the trainer pods ask for, and what they run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Model, ObjectName, Quantity, Rule, ShortString, UniqueBy, exactly_one

QualifiedName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
    ),
]
EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ConfigKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]


class Resources(Model):
    """Nodes, GPUs and the rest, for one attempt."""

    rules = (
        Rule(
            field="device",
            message="device CUDA needs gpusPerNode of at least 1",
            cel="!has(self.device) || self.device != 'CUDA' || !has(self.gpusPerNode) || self.gpusPerNode > 0",
            holds=lambda it: it.device != "CUDA" or it.gpus_per_node > 0,
        ),
    )

    nodes: Annotated[int, Field(ge=1, le=1)] = 1
    """Trainer pods. Not yet supported: more than 1."""
    gpus_per_node: Annotated[int, Field(ge=0, le=1)] = 1
    """GPUs per pod. Not yet supported: more than 1."""
    device: Literal["CUDA", "CPU"] | None = None
    """What computes (default: CUDA when gpusPerNode > 0); CUDA without a working GPU fails."""
    gpu_resource: QualifiedName = "nvidia.com/gpu"
    """The extended resource that a GPU is asked for by."""
    cpu: Quantity | None = None
    """CPUs per pod: requested, and as many threads; not limited."""
    memory: Quantity | None = None
    """Memory per pod, requested and limited."""
    ephemeral_storage: Quantity | None = None
    """Scratch space per pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm."""


class KeyReference(Model):
    """A key of a Secret or ConfigMap in the job's own namespace."""

    name: ObjectName
    """Name of the object."""
    key: ConfigKey
    """Key within it."""
    optional: bool | None = None
    """Go on when it is missing."""


class EnvSource(Model):
    """Where the value of an environment variable comes from."""

    rules = (
        Rule(
            field="secretKeyRef",
            message="set exactly one of secretKeyRef and configMapKeyRef",
            cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
            holds=exactly_one("secret_key_ref", "config_map_key_ref"),
        ),
    )

    secret_key_ref: KeyReference | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyReference | None = None
    """A key of a ConfigMap."""


class EnvVar(Model):
    """One environment variable of the trainer container."""

    rules = (
        Rule(
            field="valueFrom",
            message="set at most one of value and valueFrom",
            cel="!(has(self.value) && has(self.valueFrom))",
            holds=lambda it: it.value is None or it.value_from is None,
        ),
    )

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value."""
    value_from: EnvSource | None = None
    """A Secret or ConfigMap that holds the value."""


class Runtime(Model):
    """What runs in the trainer pods."""

    image: ShortString | None = None
    """Trainer image (default: from the chart)."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As in a container (default: from the chart)."""
    env: Annotated[list[EnvVar], UniqueBy("name"), Field(max_length=64)] = []
    """Environment of the trainer container."""


class Retry(Model):
    """What happens after a crash: a new attempt that resumes from the last checkpoint."""

    limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Crashes that are retried; interruptions (eviction, preemption) do not count."""
    backoff_seconds: Annotated[int, Field(ge=1, le=86_400)] = 10
    """Wait before the first retry; doubles with each, up to 300."""
