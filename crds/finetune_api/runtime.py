"""Image, environment, volumes and scheduling of the trainer pods: an allow-list of core/v1 fields in core/v1 wording.

A job cannot patch the pod freely, and no reference has a namespace. The Helm chart may set the same fields for all
jobs; the description of each field says how the two are combined.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.affinity import Affinity
from finetune_api.base import (
    Labels,
    LabelValue,
    ListMapKey,
    Model,
    ObjectName,
    QualifiedName,
    Rule,
    ShortString,
    at_most_one_of,
    exactly_one_of,
)
from finetune_api.names import RESERVED_DIRS

ENV_NAME = r"^[-._A-Za-z][-._A-Za-z0-9]*$"
CONFIG_KEY = r"^[-._a-zA-Z0-9]+$"
MOUNT_PATH = r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$"

EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=ENV_NAME)]
ConfigKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=CONFIG_KEY)]
MountPath = Annotated[str, StringConstraints(min_length=2, max_length=256, pattern=MOUNT_PATH)]
UserID = Annotated[int, Field(ge=1, le=2_147_483_647)]


class SecretKeySelector(Model):
    """Selects a key of a Secret in the namespace of the job."""

    name: ObjectName
    """Name of the Secret."""
    key: ConfigKey
    """The key of the Secret to select from. Must be a valid Secret key."""
    optional: bool | None = None
    """If true, the Secret or its key may be missing. Defaults to false."""


class ConfigMapKeySelector(Model):
    """Selects a key from a ConfigMap in the namespace of the job."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: ConfigKey
    """The key to select."""
    optional: bool | None = None
    """If true, the ConfigMap or its key may be missing. Defaults to false."""


class EnvVarSource(Model):
    """Source for the value of an environment variable. Exactly one of the fields is set."""

    rules = (exactly_one_of("secretKeyRef", "configMapKeyRef"),)

    secret_key_ref: SecretKeySelector | None = None
    """Selects a key of a Secret in the namespace of the job. Mutually exclusive with configMapKeyRef."""
    config_map_key_ref: ConfigMapKeySelector | None = None
    """Selects a key of a ConfigMap in the namespace of the job. Mutually exclusive with secretKeyRef."""


class EnvVar(Model):
    """An environment variable of the trainer container."""

    rules = (at_most_one_of("value", "valueFrom", report="valueFrom"),)

    name: EnvName
    """Name of the environment variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Value of the environment variable. References $(VAR_NAME) are expanded using the previously defined environment
    variables in the container; $$(VAR_NAME) escapes one. Mutually exclusive with valueFrom. Defaults to \"\"."""
    value_from: EnvVarSource | None = None
    """Source for the value of the environment variable. Mutually exclusive with value. If not set, value is used."""


class SecretEnvSource(Model):
    """Selects a Secret to populate the environment variables with: each key becomes a variable."""

    name: ObjectName
    """Name of the Secret."""
    optional: bool | None = None
    """If true, the Secret may be missing. Defaults to false."""


class ConfigMapEnvSource(Model):
    """Selects a ConfigMap to populate the environment variables with: each key becomes a variable."""

    name: ObjectName
    """Name of the ConfigMap."""
    optional: bool | None = None
    """If true, the ConfigMap may be missing. Defaults to false."""


class EnvFromSource(Model):
    """A Secret or ConfigMap whose keys become environment variables. Exactly one of secretRef and configMapRef is
    set."""

    rules = (exactly_one_of("secretRef", "configMapRef"),)

    prefix: EnvName | None = None
    """Text to prepend to the name of each environment variable. If not set, the keys are the names."""
    secret_ref: SecretEnvSource | None = None
    """The Secret to select from, in the namespace of the job. Mutually exclusive with configMapRef."""
    config_map_ref: ConfigMapEnvSource | None = None
    """The ConfigMap to select from, in the namespace of the job. Mutually exclusive with secretRef."""


class LocalObjectReference(Model):
    """Reference to a Secret in the namespace of the job."""

    name: ObjectName
    """Name of the Secret."""


class Toleration(Model):
    """The pod this toleration is attached to tolerates any taint that matches the triple <key,value,effect> using the
    matching operator."""

    rules = (
        Rule(
            field="key",
            message="operator must be Exists when key is not set, which matches all taints",
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            is_valid=lambda toleration: toleration.key is not None or toleration.operator == "Exists",
        ),
        Rule(
            field="value",
            message="value must not be set when operator is Exists",
            cel="!has(self.value) || self.value == '' || !has(self.operator) || self.operator != 'Exists'",
            is_valid=lambda toleration: not toleration.value or toleration.operator != "Exists",
        ),
        Rule(
            field="tolerationSeconds",
            message="effect must be NoExecute when tolerationSeconds is set",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            is_valid=lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
        ),
    )

    key: QualifiedName | None = None
    """Key of the taint that the toleration applies to. If not set, operator must be Exists, and all taints match."""
    operator: Literal["Exists", "Equal"] | None = None
    """Relationship of the key to the value. Exists is equivalent to a wildcard for the value, so that a pod can
    tolerate all taints of a particular category. Defaults to Equal."""
    value: LabelValue | None = None
    """Value of the taint that the toleration matches. Must not be set if operator is Exists. Defaults to \"\"."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint to match. If not set, all effects match."""
    toleration_seconds: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Period of time in seconds that the toleration, which must have effect NoExecute, tolerates the taint. If not set,
    the taint is tolerated forever."""


def _overlap(one: str, other: str) -> bool:
    """Whether the directories are the same, or one contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


_RESERVED = ", ".join(f"'{path}'" for path in RESERVED_DIRS)


class Volume(Model):
    """A PersistentVolumeClaim that is mounted into the trainer container."""

    rules = (
        Rule(
            field="mountPath",
            message=f"mountPath must not overlap a directory that the trainer uses: {', '.join(RESERVED_DIRS)}",
            cel=f"![{_RESERVED}].exists(dir, self.mountPath == dir || "
            "self.mountPath.startsWith(dir + '/') || dir.startsWith(self.mountPath + '/'))",
            is_valid=lambda volume: not any(_overlap(volume.mount_path, path) for path in RESERVED_DIRS),
        ),
    )

    claim: ObjectName
    """Name of a PersistentVolumeClaim in the namespace of the job."""
    mount_path: MountPath
    """Path within the container at which the volume is mounted. Must be unique within the job, and must not overlap a
    directory that the trainer uses."""
    read_only: bool = False
    """Whether the volume is mounted read-only."""


class Runtime(Model):
    """Image, environment, volumes and scheduling of the trainer pods."""

    image: ShortString | None = None
    """Container image of the trainer. Defaults to `trainer.image` of the Helm chart."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Image pull policy. Defaults to `trainer.image.pullPolicy` of the Helm chart."""
    image_pull_secrets: Annotated[list[LocalObjectReference], ListMapKey("name"), Field(max_length=16)] = []
    """List of references to Secrets in the namespace of the job to use for pulling the image, in addition to those of
    `trainer.imagePullSecrets` of the Helm chart."""
    env: Annotated[list[EnvVar], ListMapKey("name"), Field(max_length=64)] = []
    """List of environment variables to set in the trainer container. Variables of the same name in `trainer.env` of the
    Helm chart take precedence."""
    env_from: Annotated[list[EnvFromSource], Field(max_length=16)] = []
    """List of sources to populate environment variables in the trainer container. When a key exists in multiple
    sources, the value associated with the last source takes precedence; sources in `trainer.envFrom` of the Helm chart
    come last. Values defined in env, and HOME, HF_HOME, TMPDIR and OMP_NUM_THREADS, take precedence over all
    sources."""
    node_selector: Labels | None = None
    """Selector which must match a node's labels for the pod to be scheduled on that node. Merged with
    `trainer.nodeSelector` of the Helm chart, which takes precedence. If not set, only the latter applies."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """The pod's tolerations, in addition to `trainer.tolerations` of the Helm chart."""
    affinity: Affinity | None = None
    """The pod's scheduling constraints. If `trainer.affinity` of the Helm chart sets nodeAffinity, podAffinity or
    podAntiAffinity, it replaces the one of the job. If not set, only the chart's applies."""
    priority_class_name: ObjectName | None = None
    """Name of the PriorityClass of the pod. `trainer.priorityClassName` of the Helm chart takes precedence. If neither
    is set, the pod has the default priority."""
    scheduler_name: ObjectName | None = None
    """Name of the scheduler that dispatches the pod. `trainer.schedulerName` of the Helm chart takes precedence. If
    neither is set, the pod is dispatched by the default scheduler."""
    service_account_name: ObjectName | None = None
    """Name of the ServiceAccount to use to run the pod. Its token is not mounted. `trainer.serviceAccountName` of the
    Helm chart takes precedence. If neither is set, the pod runs as the default ServiceAccount of the namespace."""
    run_as_user: UserID | None = None
    """The UID to run the entrypoint of the container process. Must not be root. Defaults to `trainer.runAsUser` of the
    Helm chart."""
    fs_group: UserID | None = None
    """The GID to run the entrypoint of the container process, and a supplemental group that owns the files of mounted
    volumes. Defaults to `trainer.fsGroup` of the Helm chart."""
    volumes: Annotated[list[Volume], ListMapKey("mountPath"), Field(max_length=16)] = []
    """PersistentVolumeClaims to mount in addition to those of model, data and output."""
    cache_claim: ObjectName | None = None
    """Name of a PersistentVolumeClaim for the cache of the Hugging Face Hub (HF_HOME), so that retries and other jobs
    can reuse downloads. If not set, downloads are lost with the pod."""
