"""Status of a FineTuneJob: conditions, progress, metrics, one row per module and per attempt.

The operator writes it. The trainer's termination message is a `Report`, which consists of the same types.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from finetune_api.base import ListMapKey, Model

Name = Annotated[str, StringConstraints(max_length=316)]
Message = Annotated[str, StringConstraints(max_length=32_768)]
Reason = Annotated[str, StringConstraints(max_length=1024)]
Text = Annotated[str, StringConstraints(max_length=1024)]
Rounded = Annotated[float, AfterValidator(lambda value: float(f"{value:.5g}"))]
"""A measured number, rounded to five significant digits."""
Number = Annotated[int, Field(ge=-1, le=9_007_199_254_740_991)]


class StatusModel(Model):
    """Base of all status types; fields that another version of the operator has set are ignored."""

    model_config = ConfigDict(strict=False, extra="ignore", validate_by_name=True)


class Condition(StatusModel):
    """Details for one aspect of the current state of the job, like `metav1.Condition`."""

    type: Literal["Succeeded", "Reconciling", "Stalled", "Suspended"]
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Status of the condition, one of True, False, Unknown."""
    reason: Reason
    """Programmatic identifier in CamelCase of the reason for the condition's status. For Succeeded it is the state of the job: Queued, Pending, Running, Restarting, Suspending, Suspended, Stalled, Succeeded or Failed."""  # noqa: E501
    message: Message = ""
    """Human-readable message with details about the status. This may be an empty string."""
    last_transition_time: datetime
    """Last time the condition transitioned from one status to another."""
    observed_generation: Number
    """The `.metadata.generation` that the condition was set based upon."""


class Progress(StatusModel):
    """Training progress as reported by rank 0; kept after the job has finished."""

    step: Number = 0
    """Number of optimizer steps done."""
    planned_steps: Number = 0
    """Number of optimizer steps planned."""
    epoch: Rounded = 0.0
    """Number of epochs done, including the fraction of the current one."""
    percentage: float = 0.0
    """Steps done, in percent of the planned steps."""
    summary: Text | None = None
    """Steps done, planned, and in percent, e.g. `46/168 (27%)`. Printed by `kubectl get`."""
    non_finite_steps: Number | None = None
    """Number of steps that were skipped because loss or gradients were not finite. Unset if there are none."""
    samples_per_second: Rounded | None = None
    """Training throughput over all devices, in samples per second."""
    estimated_completion_time: datetime | None = None
    """Time at which the last step is expected to be done."""
    observed_time: datetime | None = None
    """Time at which this progress was read from the trainer."""

    @classmethod
    def at_step(
        cls,
        step: int,
        planned_steps: int,
        *,
        epoch: float,
        observed_time: datetime | None,
        samples_per_second: float | None = None,
        estimated_completion_time: datetime | None = None,
        non_finite_steps: int | None = None,
    ) -> Progress:
        """Progress with `percentage` and `summary` computed; `planned_steps` is 0 if unknown."""
        # Rounded down in the summary: 100% is printed after the last step only.
        percentage = min(100.0, 100.0 * step / planned_steps) if planned_steps > 0 else 0.0
        return cls(
            step=step,
            planned_steps=planned_steps,
            epoch=epoch,
            percentage=round(percentage, 2),
            summary=f"{step}/{planned_steps} ({int(percentage)}%)" if planned_steps > 0 else f"{step}",
            samples_per_second=samples_per_second,
            estimated_completion_time=estimated_completion_time,
            non_finite_steps=non_finite_steps or None,
            observed_time=observed_time,
        )


class Metric(StatusModel):
    """Latest value of a metric."""

    name: Name
    """Name of the metric: `train/loss`, `eval/...` or `test/...`."""
    value: Rounded
    """Value of the metric."""
    step: Number = 0
    """Optimizer step at which the value was measured."""


class BestEvaluation(StatusModel):
    """The best evaluation so far."""

    metric: Name
    """Name of the metric that decides, as in `spec.evaluation.metric`, e.g. `eval/loss`."""
    value: Rounded
    """Best value of the metric."""
    step: Number
    """Optimizer step at which the value was measured."""


class ModuleStatus(StatusModel):
    """Current state of one module."""

    name: Name
    """Name of the module."""
    parameters: Number = 0
    """Number of parameters that the module owns."""
    trainable: Number = 0
    """Number of parameters that are trained at the current step."""
    optimizer: Name | None = None
    """Type of the module's optimizer. Unset if `frozen: true` in the spec."""
    learning_rate: Rounded | None = None
    """Learning rate of the last step. Unset before the first step."""
    gradient_norm: Rounded | None = None
    """Norm of the module's gradient in the last step, before clipping. Unset before the first step."""
    frozen: bool = False
    """Whether the module is frozen at the current step."""


class CheckpointStatus(StatusModel):
    """The last complete checkpoint."""

    step: Number
    """Optimizer step of the checkpoint."""
    path: Text | None = None
    """Location of the checkpoint, as `pvc://claim/path`."""
    time: datetime | None = None
    """Time at which the checkpoint was complete."""


class OutputStatus(StatusModel):
    """The trained model."""

    destination: Text
    """Location of the model, as `pvc://claim/path`."""
    digest: Text | None = None
    """SHA-256 digest of the weights."""


class AttemptStatus(StatusModel):
    """One attempt, which is one Kubernetes Job."""

    number: Number
    """Number of the attempt, starting at 1."""
    job: Name
    """Name of the Kubernetes Job."""
    start_time: datetime | None = None
    """Time at which the Kubernetes Job was created."""
    end_time: datetime | None = None
    """Time at which the attempt ended."""
    reason: Reason | None = None
    """Programmatic identifier in CamelCase of how the attempt ended: Succeeded, Crashed, InvalidJob, Interrupted,
    Stalled, OutOfMemory, OutOfGPUMemory, Diverged, Disrupted, Evicted, Suspended, Deleted, ImagePullFailed or
    DeadlineExceeded."""
    exit_code: Number | None = None
    """Exit code of the trainer container."""
    oom_killed: bool | None = None
    """Whether the trainer container was killed because it exceeded its memory limit."""
    disruption: Reason | None = None
    """Reason of the pod's DisruptionTarget condition, e.g. `PreemptionByScheduler`."""
    message: Text | None = None
    """Final message of the trainer, or else the end of its log."""


class JobStatus(StatusModel):
    """Most recently observed status of a FineTuneJob."""

    observed_generation: Number = -1
    """The `.metadata.generation` that the operator last observed; -1 before it has observed any."""
    conditions: Annotated[list[Condition], ListMapKey("type"), Field(max_length=8)] = []
    """Latest observations of the job's state: Succeeded, Reconciling, Stalled, Suspended."""
    attempt: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Number of the current attempt, starting at 1. Set before the Kubernetes Job of the attempt is created."""
    restarts: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Number of retries used, at most `spec.retry.limit`. Attempts that follow an interruption do not count."""
    start_time: datetime | None = None
    """Time at which the first attempt started."""
    completion_time: datetime | None = None
    """Time at which the job succeeded or failed."""
    active_seconds: Annotated[int, Field(ge=0, le=9_007_199_254_740_991)] | None = None
    """Total time in seconds that attempts were active before `activeSince`; limited by `spec.activeDeadlineSeconds`."""
    active_since: datetime | None = None
    """Time since which the current attempt is active without interruption. Unset while no attempt is active."""
    cleanup_time: datetime | None = None
    """Time at which Jobs, pods and ConfigMaps were found deleted, after `spec.ttlSecondsAfterFinished`."""
    spec_hash: Text | None = None
    """Hash of the spec fields that determine the trained model."""
    progress: Progress | None = None
    """Training progress."""
    metrics: Annotated[list[Metric], Field(max_length=64)] | None = None
    """Latest value of each metric."""
    best: BestEvaluation | None = None
    """Best evaluation so far, by the metric that selects the best checkpoint."""
    modules: Annotated[list[ModuleStatus], Field(max_length=64)] | None = None
    """Current state of each module."""
    checkpoint: CheckpointStatus | None = None
    """Last complete checkpoint. Unset once the job has succeeded."""
    output: OutputStatus | None = None
    """The trained model. Set once the job has succeeded."""
    attempts: Annotated[list[AttemptStatus], Field(max_length=10)] | None = None
    """The last 10 attempts, oldest first."""


TERMINATION_MESSAGE_BYTES = 4096
"""Limit of the kubelet for a container's termination message."""


class Report(StatusModel):
    """Final report of a trainer, written to the termination message of its container."""

    reason: Reason
    """How the run ended, in CamelCase."""
    message: Text
    """Human-readable message; after a failure, what to change."""
    progress: Progress | None = None
    """Training progress."""
    metrics: list[Metric] = []
    """Latest value of each metric."""
    best: BestEvaluation | None = None
    """Best evaluation."""
    modules: list[ModuleStatus] = []
    """State of each module."""
    checkpoint: CheckpointStatus | None = None
    """Last complete checkpoint."""
    output: OutputStatus | None = None
    """The trained model."""

    def termination_message(self) -> str:
        """The report as JSON of at most 4,096 bytes; modules and then metrics are dropped if it is longer."""
        droppable: tuple[set[str], ...] = (set(), {"modules"}, {"modules", "metrics"})
        for dropped in droppable:
            text = self.model_dump_json(by_alias=True, exclude_none=True, exclude=dropped)
            if len(text.encode()) <= TERMINATION_MESSAGE_BYTES:
                return text
        return Report(reason=self.reason, message=self.message[:500]).model_dump_json(by_alias=True, exclude_none=True)
