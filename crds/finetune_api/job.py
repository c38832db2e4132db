"""FineTuneJob: the root object of the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from finetune_api.base import DNS_1035_LABEL, DNS_SUBDOMAIN, ListMapKey, Model, Rule, not_yet_supported, without_nulls
from finetune_api.checkpoint import Checkpoint, Output
from finetune_api.data import Data
from finetune_api.effects import Effect, hash_fields
from finetune_api.evaluation import Evaluation
from finetune_api.model import ModelSource
from finetune_api.modules import Module
from finetune_api.names import API_VERSION, JOB_KIND, MAX_NAME, output_claim
from finetune_api.resources import Resources, Retry
from finetune_api.runtime import Runtime
from finetune_api.sources import claim_names
from finetune_api.status import JobStatus
from finetune_api.training import Training

Task = Literal["Contrastive", "CausalLM", "SequenceClassification", "ImageClassification", "ImageTextToText", "Custom"]
ENTRYPOINT = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
Entrypoint = Annotated[str, StringConstraints(max_length=256, pattern=ENTRYPOINT)]
QueueName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_SUBDOMAIN)]
JobName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=DNS_1035_LABEL)]
Seconds = Annotated[int, Field(ge=1, le=1_000_000_000)]
Modules = Annotated[list[Module], ListMapKey("name"), Field(min_length=1, max_length=64)]

UNSUPPORTED_TASKS = ("ImageTextToText", "Custom")

ALWAYS_MUTABLE = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
"""Spec fields that may change at any time; the others are immutable once an attempt exists."""

_HAS_EVALUATION = "has(self.data.validation) || has(self.data.fold)"
_HAS_PLATEAU = (
    "has(self.modules) && self.modules.exists(module, "
    "has(module.schedule) && module.schedule.exists(phase, phase.type == 'Plateau'))"
)
_MICRO_BATCHES = (
    "has(self.training) && has(self.training.microBatchSize) && "
    "self.training.microBatchSize < (has(self.training.batchSize) ? self.training.batchSize : 32)"
)


def _has_evaluation(spec: JobSpec) -> bool:
    return spec.data.validation is not None or spec.data.fold is not None


def _has_plateau(spec: JobSpec) -> bool:
    return any(phase.type == "Plateau" for module in spec.modules or () for phase in module.schedule or ())


def _unsupported_task(task: str) -> Rule:
    return not_yet_supported(
        "task", f"task {task}", f"!has(self.task) || self.task != '{task}'", lambda spec: spec.task != task
    )


class JobSpec(Model):
    """Desired state of a FineTuneJob."""

    rules = (
        *map(_unsupported_task, UNSUPPORTED_TASKS),
        Rule(
            field="entrypoint",
            message="entrypoint must be set if and only if task is Custom",
            cel="has(self.entrypoint) == (has(self.task) && self.task == 'Custom')",
            is_valid=lambda spec: (spec.entrypoint is not None) == (spec.task == "Custom"),
        ),
        Rule(
            field="modules",
            message="a Plateau schedule needs an evaluation: set data.validation or data.fold",
            cel=f"{_HAS_EVALUATION} || !({_HAS_PLATEAU})",
            is_valid=lambda spec: _has_evaluation(spec) or not _has_plateau(spec),
        ),
        Rule(
            field="evaluation.earlyStopping",
            message="earlyStopping needs an evaluation: set data.validation or data.fold",
            cel=f"{_HAS_EVALUATION} || !(has(self.evaluation) && has(self.evaluation.earlyStopping))",
            is_valid=lambda spec: _has_evaluation(spec) or spec.evaluation.early_stopping is None,
        ),
        not_yet_supported(
            "training.microBatchSize",
            "gradient caching; task Contrastive compares all samples of a batch: remove microBatchSize",
            f"!(has(self.task) && self.task == 'Contrastive' && {_MICRO_BATCHES})",
            lambda spec: (
                spec.task != "Contrastive"
                or (spec.training.micro_batch_size or spec.training.batch_size) >= spec.training.batch_size
            ),
        ),
    )

    model: ModelSource
    """Pretrained model to fine-tune."""
    task: Task | None = None
    """Task to fine-tune the model for. It determines the loss, the metrics and the required columns. Defaults to the
    task of the architecture in the model's config; the run fails if that is ambiguous."""
    entrypoint: Entrypoint | None = None
    """Factory of a user-defined task, as `package.module:factory`. Set if and only if task is Custom."""
    data: Data
    """Training, validation and test data."""
    training: Training = Training()
    """Hyperparameters that apply to all modules, such as duration, batch size and precision."""
    evaluation: Evaluation = Evaluation()
    """Interval and metric of the evaluation on the validation set."""
    modules: Modules | None = None
    """Sets of parameters, each with its own optimizer, schedule and regularization. A parameter must not belong to more
    than one module. Defaults to one module `all` that trains all parameters with AdamW and a learning rate of 5e-5."""
    unmatched: Literal["Forbid", "Freeze"] = "Forbid"
    """What to do with parameters that do not belong to any module. Forbid: the run fails before the first step. Freeze:
    they are not trained."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written and how many are kept."""
    output: Output = Output()
    """Location of the fine-tuned model."""
    resources: Resources = Resources()
    """Compute resources of the trainer pods."""
    runtime: Runtime = Runtime()
    """Image, environment, volumes and scheduling of the trainer pods."""
    retry: Retry = Retry()
    """Retries of failed attempts."""
    stall_timeout_seconds: Annotated[int, Field(ge=30, le=1_000_000_000)] = 1800
    """Duration in seconds without a step, evaluation batch or checkpoint after which the trainer is stopped. Such an
    attempt counts as crashed and is retried. Loading the model and the data is not subject to the timeout."""
    queue_name: QueueName | None = None
    """Name of the Kueue LocalQueue that admits the attempts of the job. If not set, the job is not queued."""
    workload_priority_class_name: QueueName | None = None
    """Name of the Kueue WorkloadPriorityClass of the job. If not set, Kueue uses the priority of the pods."""
    suspend: bool = False
    """Whether to suspend the job. When a running job is suspended, its trainer writes a checkpoint and its pods are
    deleted. When it is resumed, a new attempt continues from the checkpoint. Can be changed at any time."""
    active_deadline_seconds: Seconds | None = None
    """Total duration in seconds that the attempts of the job may be running before the operator terminates the job as
    failed. Time in a queue, suspended or between attempts does not count. Can be changed at any time. If not set, the
    duration is unlimited."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Duration in seconds after which the Jobs, pods and ConfigMaps of a finished job are deleted. The FineTuneJob is
    not deleted. Can be changed at any time. If not set, they are not deleted."""

    def content_hash(self) -> str:
        """SHA-256 (hex) of the fields that determine the result."""
        return hash_fields(self.manifest(), Effect.RESULT, Effect.POSITION)


class ObjectMeta(Model):
    """The fields of `metav1.ObjectMeta` that the trainer and the operator read; others are ignored."""

    model_config = ConfigDict(extra="ignore", strict=False)

    name: JobName
    namespace: str | None = None
    uid: str | None = None
    generation: int = 1
    labels: Annotated[dict[str, str], BeforeValidator(without_nulls)] = {}
    annotations: Annotated[dict[str, str], BeforeValidator(without_nulls)] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    resource_version: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("generateName") and not value.get("name"):
            message = "is required: generateName works with `kubectl create` only"
            raise PydanticCustomError("rule", "{message}", {"message": message, "field": "name"})
        return value


class FineTuneJob(Model):
    """FineTuneJob is a fine-tuning run of a transformers model on Kubernetes."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["FineTuneJob"] = JOB_KIND
    metadata: ObjectMeta
    spec: JobSpec
    """Specification of the desired behavior of the job."""
    status: JobStatus | None = None
    """Most recently observed status of the job. Populated by the operator. Read-only."""

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def destination(self) -> str:
        """`spec.output.destination`, or its default."""
        return self.spec.output.destination or f"pvc://{output_claim(self.name)}"

    @property
    def claims(self) -> list[str]:
        """Distinct names of the claims in sources and destination; the claim of the destination comes last."""
        data = self.spec.data
        validation = data.validation.source if data.validation else None
        test = data.test.source if data.test else None
        return claim_names([self.spec.model.source, data.train.source, validation, test, self.destination])


def parse(manifest: dict[str, Any]) -> FineTuneJob:
    """Parse an object as the API server returns it.

    Raises:
        pydantic.ValidationError: the object is invalid.
    """
    return FineTuneJob.model_validate(manifest)
