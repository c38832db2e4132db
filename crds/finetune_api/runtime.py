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
    Model,
    ObjectName,
    QualifiedName,
    Rule,
    ShortString,
    UniqueBy,
    exactly_one,
)
from finetune_api.names import RESERVED_DIRS

ENV_NAME = r"^[-._A-Za-z][-._A-Za-z0-9]*$"
CONFIG_KEY = r"^[-._a-zA-Z0-9]+$"
MOUNT_PATH = r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$"

EnvName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=ENV_NAME)]
ConfigKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=CONFIG_KEY)]
MountPath = Annotated[str, StringConstraints(min_length=2, max_length=256, pattern=MOUNT_PATH)]
Id = Annotated[int, Field(ge=1, le=2_147_483_647)]


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


class NameReference(Model):
    """A Secret or ConfigMap in the job's own namespace."""

    name: ObjectName
    """Name of the object."""
    optional: bool | None = None
    """Go on when it is missing."""


class EnvFrom(Model):
    """Environment variables from every key of a Secret or ConfigMap."""

    rules = (
        Rule(
            field="secretRef",
            message="set exactly one of secretRef and configMapRef",
            cel="has(self.secretRef) != has(self.configMapRef)",
            holds=exactly_one("secret_ref", "config_map_ref"),
        ),
    )

    prefix: EnvName | None = None
    """Put before each name."""
    secret_ref: NameReference | None = None
    """A Secret."""
    config_map_ref: NameReference | None = None
    """A ConfigMap."""


class PullSecret(Model):
    """A Secret with the credentials of a registry, in the job's own namespace."""

    name: ObjectName
    """Name of the Secret."""


class Toleration(Model):
    """A taint that the pods tolerate."""

    rules = (
        Rule(
            field="key",
            message="a toleration without a key needs operator: Exists, and then tolerates every taint",
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            holds=lambda it: it.key is not None or it.operator == "Exists",
        ),
        Rule(
            field="value",
            message="operator Exists takes no value",
            cel="!has(self.value) || self.value == '' || !has(self.operator) || self.operator != 'Exists'",
            holds=lambda it: not it.value or it.operator != "Exists",
        ),
        Rule(
            field="tolerationSeconds",
            message="tolerationSeconds needs effect: NoExecute",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            holds=lambda it: it.toleration_seconds is None or it.effect == "NoExecute",
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
    """Whether one folder is the other, or lies within it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


_RESERVED = ", ".join(f"'{folder}'" for folder in RESERVED_DIRS)


class Volume(Model):
    """A claim that is mounted beside what the job itself needs."""

    rules = (
        Rule(
            field="mountPath",
            message="mountPath must neither lie in a folder that the trainer needs nor hold one; needed are "
            + ", ".join(RESERVED_DIRS),
            cel=f"![{_RESERVED}].exists(folder, self.mountPath == folder || "
            "self.mountPath.startsWith(folder + '/') || folder.startsWith(self.mountPath + '/'))",
            holds=lambda it: not any(_overlap(it.mount_path, folder) for folder in RESERVED_DIRS),
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
    image_pull_secrets: Annotated[list[PullSecret], UniqueBy("name"), Field(max_length=16)] = []
    """Credentials for the image's registry."""
    env: Annotated[list[EnvVar], UniqueBy("name"), Field(max_length=64)] = []
    """Environment of the trainer container."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16)] = []
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
    run_as_user: Id | None = None
    """User the trainer runs as, never root (default: from the chart)."""
    fs_group: Id | None = None
    """Group that the files of claims belong to (default: from the chart)."""
    volumes: Annotated[list[Volume], UniqueBy("mountPath"), Field(max_length=16)] = []
    """More claims to mount."""
    cache_claim: ObjectName | None = None
    """Claim for downloads (HF_HOME), so that retries and other jobs do not download again."""
