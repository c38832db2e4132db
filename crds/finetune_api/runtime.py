"""What runs in the trainer pods, and where: a whitelist in Kubernetes' own shapes, never a free patch of the pod.

No reference has a namespace: a job reaches only its own. Where the administrator's values (the chart) speak of the same
thing, they win.
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
    """SecretKeySelector selects a key of a Secret in the namespace of the job."""

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
    """Where the value of an environment variable comes from."""

    rules = (exactly_one_of("secretKeyRef", "configMapKeyRef"),)

    secret_key_ref: SecretKeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: ConfigMapKeySelector | None = None
    """A key of a ConfigMap."""


class EnvVar(Model):
    """One environment variable of the trainer container."""

    rules = (at_most_one_of("value", "valueFrom", report="valueFrom"),)

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value."""
    value_from: EnvVarSource | None = None
    """A Secret or ConfigMap that holds the value."""


class SecretEnvSource(Model):
    """Selects a Secret to populate the environment variables with, one for each key of its data."""

    name: ObjectName
    """Name of the Secret."""
    optional: bool | None = None
    """If true, the Secret may be missing. Defaults to false."""


class ConfigMapEnvSource(Model):
    """Selects a ConfigMap to populate the environment variables with, one for each key of its data."""

    name: ObjectName
    """Name of the ConfigMap."""
    optional: bool | None = None
    """If true, the ConfigMap may be missing. Defaults to false."""


class EnvFromSource(Model):
    """Environment variables from every key of a Secret or ConfigMap."""

    rules = (exactly_one_of("secretRef", "configMapRef"),)

    prefix: EnvName | None = None
    """Put before each name."""
    secret_ref: SecretEnvSource | None = None
    """A Secret."""
    config_map_ref: ConfigMapEnvSource | None = None
    """A ConfigMap."""


class LocalObjectReference(Model):
    """A Secret with the credentials of a registry, in the job's own namespace."""

    name: ObjectName
    """Name of the Secret."""


class Toleration(Model):
    """A taint that the pods tolerate."""

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
    """Key of the taint; every taint when left out, with operator Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """How key and value are compared (default: Equal)."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; every effect when left out."""
    toleration_seconds: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """For how long the taint is tolerated; for ever when left out."""


def _overlap(one: str, other: str) -> bool:
    """Whether the directories are the same, or one contains the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


_RESERVED = ", ".join(f"'{path}'" for path in RESERVED_DIRS)


class Volume(Model):
    """A claim that is mounted beside what the job itself needs."""

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
    """Name of the PersistentVolumeClaim."""
    mount_path: MountPath
    """Where it is mounted."""
    read_only: bool = False
    """Mounted so that nothing can be written."""


class Runtime(Model):
    """What runs in the trainer pods, and where."""

    image: ShortString | None = None
    """Trainer image (default: from the chart)."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """As in a container (default: from the chart)."""
    image_pull_secrets: Annotated[list[LocalObjectReference], ListMapKey("name"), Field(max_length=16)] = []
    """Credentials for the image's registry."""
    env: Annotated[list[EnvVar], ListMapKey("name"), Field(max_length=64)] = []
    """Environment of the trainer container."""
    env_from: Annotated[list[EnvFromSource], Field(max_length=16)] = []
    """Environment from whole Secrets and ConfigMaps; `env` and what every trainer gets (HF_HOME) win over it."""
    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that are tolerated."""
    affinity: Affinity | None = None
    """Which nodes, and which company, the pods prefer or need."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pods; its token is not mounted."""
    run_as_user: UserID | None = None
    """User the trainer runs as, never root (default: from the chart)."""
    fs_group: UserID | None = None
    """Group that the files of claims belong to (default: from the chart)."""
    volumes: Annotated[list[Volume], ListMapKey("mountPath"), Field(max_length=16)] = []
    """More claims to mount."""
    cache_claim: ObjectName | None = None
    """Claim for downloads (HF_HOME), so that retries and other jobs do not download again."""
