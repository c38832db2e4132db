"""What the administrator decides: the operator's configuration file, which the chart mounts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_api.affinity import Affinity
from finetune_api.base import Labels, ObjectName, Quantity
from finetune_api.runtime import EnvFrom, EnvName, Id, PullSecret, Toleration

Namespace = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message names the file, the field and what was expected."""


class ConfigModel(BaseModel):
    """A piece of the configuration: camelCase outside, unknown fields and other types refused, as the chart does."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, strict=True)


class TrainerResources(ConfigModel):
    """What a trainer pod gets where the job does not say; none means that no request or limit is set."""

    cpu: Quantity | None = None
    memory: Quantity | None = None
    ephemeral_storage: Quantity | None = None
    shared_memory: Quantity | None = None


class EnvVar(ConfigModel):
    """An environment variable, as in a container; any source that Kubernetes knows will do."""

    name: EnvName
    value: str | None = None
    value_from: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("set at most one of value and valueFrom")
        return self


class TrainerConfig(ConfigModel):
    """How trainer pods are made.

    Image, pull policy, resources, user and group are defaults, which a job may override. Of the rest the administrator
    has the last word: maps are merged with these keys winning, lists are joined, and a name that is set wins.
    """

    image: str = "finetune-trainer:latest"
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    resources: TrainerResources = TrainerResources()
    run_as_user: Id = 65532
    fs_group: Id = 65532
    image_pull_deadline_seconds: Annotated[int, Field(ge=1)] = 600
    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 120
    env: list[EnvVar] = []
    """They win over the job's."""
    env_from: list[EnvFrom] = []
    image_pull_secrets: list[PullSecret] = []
    node_selector: Labels = {}
    tolerations: list[Toleration] = []
    affinity: Affinity | None = None
    priority_class_name: ObjectName | None = None
    scheduler_name: ObjectName | None = None
    service_account_name: ObjectName | None = None

    def env_manifests(self) -> list[dict[str, Any]]:
        """The environment variables, in a container's own shape."""
        return [it.model_dump(by_alias=True, exclude_none=True) for it in self.env]


class OutputClaimConfig(ConfigModel):
    """The claim that is made for a job without `output.destination`."""

    size: Quantity = "20Gi"
    storage_class_name: str | None = None
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]], Field(min_length=1)
    ] = ["ReadWriteOnce"]


class Config(ConfigModel):
    """The whole file; every field has a default, so an empty file is a valid one."""

    trainer: TrainerConfig = TrainerConfig()
    output_claim: OutputClaimConfig = OutputClaimConfig()
    watch_namespaces: list[Namespace] = []
    """Namespaces to serve; none means all."""
    progress_interval_seconds: Annotated[float, Field(gt=0)] = 15
    """Progress is written to a job's status at most this often."""
    poll_interval_seconds: Annotated[float, Field(gt=0)] = 5
    """Trainers are asked for their progress this often."""
    recheck_interval_seconds: Annotated[float, Field(gt=0)] = 10
    """A job that waits for something missing looks for it this often."""


def load(path: Path | None) -> Config:
    """Read the configuration file; without one everything has its default.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or says something that is not understood.
    """
    if path is None:
        return Config()
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return Config.model_validate(document or {})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_errors(error)}") from None


def describe_errors(error: ValidationError) -> str:
    """Pydantic's findings in one line: field, then what was expected."""
    return "; ".join(f"{_field(item['loc'], item.get('ctx', {}))}: {item['msg']}" for item in error.errors()[:5])


def _field(location: tuple[int | str, ...], context: dict[str, Any]) -> str:
    keys = [*location, *([context["field"]] if "field" in context else [])]
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
