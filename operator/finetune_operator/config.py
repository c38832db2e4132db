"""The configuration file of the operator, which the chart mounts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_api.affinity import Affinity
from finetune_api.base import Labels, ObjectName, Quantity
from finetune_api.runtime import EnvFromSource, EnvName, LocalObjectReference, Toleration, UserID

Namespace = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class ConfigError(ValueError):
    """The configuration file is invalid; the message names the file, the field and what is expected."""


class ConfigModel(BaseModel):
    """Base of all configuration types: camelCase in YAML; unknown fields and wrong types are errors, as in Helm."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)


class TrainerResources(ConfigModel):
    """Default resources of a trainer pod; None means no request and no limit."""

    cpu: Quantity | None = None
    memory: Quantity | None = None
    ephemeral_storage: Quantity | None = None
    shared_memory: Quantity | None = None


class EnvVar(ConfigModel):
    """An environment variable of a container, with any source that Kubernetes supports."""

    name: EnvName
    value: str | None = None
    value_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("set at most one of value and valueFrom")
        return self


class TrainerConfig(ConfigModel):
    """Settings of trainer pods.

    Image, pull policy, resources, user and group are defaults, which a job may override. All other settings take
    precedence over the job's: maps are merged, lists are concatenated, and names replace those of the job.
    """

    image: str = "finetune-trainer:latest"
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    resources: TrainerResources = TrainerResources()
    run_as_user: UserID = 65532
    fs_group: UserID = 65532
    image_pull_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 120
    env: list[EnvVar] = []
    """Take precedence over the job's."""
    env_from: list[EnvFromSource] = []
    image_pull_secrets: list[LocalObjectReference] = []
    node_selector: Labels = {}
    tolerations: list[Toleration] = []
    affinity: Affinity | None = None
    priority_class_name: ObjectName | None = None
    scheduler_name: ObjectName | None = None
    service_account_name: ObjectName | None = None

    def env_manifests(self) -> list[dict[str, Any]]:
        """The environment variables as in a container spec."""
        return [it.model_dump(by_alias=True, exclude_none=True) for it in self.env]


class OutputClaimConfig(ConfigModel):
    """The PersistentVolumeClaim that is created for a job without `output.destination`."""

    size: Quantity = "20Gi"
    storage_class_name: str | None = None
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]], Field(min_length=1)
    ] = ["ReadWriteOnce"]


class Config(ConfigModel):
    """The whole file; every field has a default, so an empty file is valid."""

    trainer: TrainerConfig = TrainerConfig()
    output_claim: OutputClaimConfig = OutputClaimConfig()
    watch_namespaces: list[Namespace] = []
    """Namespaces to watch; empty means all."""
    progress_interval_seconds: Annotated[float, Field(gt=0)] = 15
    """Minimum interval between two status updates of a job that only change its progress."""
    scrape_interval_seconds: Annotated[float, Field(gt=0)] = 5
    """Interval between two scrapes of a trainer."""
    recheck_interval_seconds: Annotated[float, Field(gt=0)] = 10
    """Interval at which a job that waits for missing objects, or for old pods to terminate, is reconciled."""


def load(path: Path | None) -> Config:
    """Read the configuration file; without one, every field has its default.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is invalid.
    """
    if path is None:
        return Config()
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return Config.model_validate(document or {})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: invalid YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_errors(error)}") from None


def describe_errors(error: ValidationError) -> str:
    """The first validation errors in one line, each with its field."""
    return "; ".join(f"{_field(item['loc'], item.get('ctx', {}))}: {item['msg']}" for item in error.errors()[:5])


def _field(location: tuple[int | str, ...], context: dict[str, Any]) -> str:
    keys = [*location, *([context["field"]] if "field" in context else [])]
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
