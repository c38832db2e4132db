"""What a person reads of a job: conditions, progress, metrics, one row per module, the attempts.

The trainer speaks the same words: its termination message is a `Report` made of these.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from finetune_api.base import Model, UniqueBy

Name = Annotated[str, StringConstraints(max_length=316)]
Message = Annotated[str, StringConstraints(max_length=32_768)]
Reason = Annotated[str, StringConstraints(max_length=1024)]
Text = Annotated[str, StringConstraints(max_length=1024)]
Rounded = Annotated[float, AfterValidator(lambda value: float(f"{value:.5g}"))]
"""A measured number, to the five digits that a person reads."""
Number = Annotated[int, Field(ge=-1, le=9_007_199_254_740_991)]


class StatusModel(Model):
    """A piece of status: written by the operator, so read leniently and dated."""

    model_config = ConfigDict(strict=False, extra="ignore", validate_by_name=True)


class Condition(StatusModel):
    """A Kubernetes condition (`metav1.Condition`)."""

    type: Literal["Succeeded", "Reconciling", "Stalled", "Suspended"]
    """Which question it answers."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    reason: Reason
    """One CamelCase word; of Succeeded it is the state that a person reads."""
    message: Message = ""
    """One sentence that says what is going on, or what to do."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: Number
    """The generation it speaks of."""


class Progress(StatusModel):
    """How far rank 0 has come; kept after the end."""

    step: Number = 0
    """Optimizer steps done."""
    planned_steps: Number = 0
    """Optimizer steps planned."""
    epoch: Rounded = 0.0
    """Epochs done."""
    percentage: float = 0.0
    """100 · step / plannedSteps."""
    samples_per_second: Rounded | None = None
    """Throughput over all devices."""
    estimated_completion_time: datetime | None = None
    """When the last step is expected."""
    observed_time: datetime | None = None
    """When this was read."""


class Metric(StatusModel):
    """The latest value of a metric."""

    name: Name
    """`train/loss`, `eval/...`, `best/...`."""
    value: Rounded
    """Its value."""
    step: Number = 0
    """The step it belongs to."""


class ModuleStatus(StatusModel):
    """One module, now."""

    name: Name
    """The module."""
    parameters: Number = 0
    """Parameters it owns."""
    trainable: Number = 0
    """Parameters that train now."""
    optimizer: Name | None = None
    """Its optimizer."""
    learning_rate: Rounded | None = None
    """The rate of the last step."""
    gradient_norm: Rounded | None = None
    """The gradient norm of the last step, before clipping."""
    frozen: bool = False
    """Whether it is frozen now."""


class CheckpointStatus(StatusModel):
    """The last checkpoint."""

    step: Number
    """Its step."""
    path: Text | None = None
    """Where it is, as `pvc://claim/path`."""
    time: datetime | None = None
    """When it was complete."""


class OutputStatus(StatusModel):
    """The result."""

    destination: Text
    """Where it is, as `pvc://claim/path`."""
    digest: Text | None = None
    """SHA-256 of the weights."""


class AttemptStatus(StatusModel):
    """One attempt: one Kubernetes Job."""

    number: Number
    """Counted from 1."""
    job: Name
    """The Kubernetes Job."""
    start_time: datetime | None = None
    """When it was created."""
    end_time: datetime | None = None
    """When it ended."""
    reason: Reason | None = None
    """How it ended, in one word."""
    exit_code: Number | None = None
    """Exit code of the trainer."""
    oom_killed: bool | None = None
    """Killed for using more memory than its limit."""
    disruption: Reason | None = None
    """Why the cluster took the pod away."""
    message: Text | None = None
    """What the trainer said at the end, or the end of its log."""


class JobStatus(StatusModel):
    """Status of a FineTuneJob."""

    observed_generation: Number = -1
    """The generation the operator has seen; -1 before it has seen any."""
    conditions: Annotated[list[Condition], UniqueBy("type"), Field(max_length=8)] = []
    """Succeeded, Reconciling, Stalled, Suspended."""
    attempt: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """The current attempt; written before its Job is created."""
    restarts: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Retries used up: attempts that crashed and were followed by another; interruptions do not count."""
    start_time: datetime | None = None
    """When the first attempt started."""
    completion_time: datetime | None = None
    """When the job ended."""
    active_seconds: Annotated[int, Field(ge=0, le=9_007_199_254_740_991)] | None = None
    """How long attempts have run, all together, up to `activeSince`."""
    active_since: datetime | None = None
    """Since when the present attempt has run without a break; none while nothing runs."""
    cleanup_time: datetime | None = None
    """When its Jobs, pods and ConfigMaps were deleted, after `ttlSecondsAfterFinished`."""
    spec_hash: Text | None = None
    """Hash of what determines the result."""
    progress: Progress | None = None
    """How far it has come."""
    metrics: Annotated[list[Metric], Field(max_length=64)] | None = None
    """Latest values."""
    modules: Annotated[list[ModuleStatus], Field(max_length=64)] | None = None
    """One row per module."""
    checkpoint: CheckpointStatus | None = None
    """The last checkpoint."""
    output: OutputStatus | None = None
    """The result."""
    attempts: Annotated[list[AttemptStatus], Field(max_length=10)] | None = None
    """The last 10 attempts."""


TERMINATION_MESSAGE_BYTES = 4096


class Report(StatusModel):
    """The trainer's last word, written to the termination message of its container."""

    reason: Reason
    """How it ended, in one word."""
    message: Text
    """One sentence; for a failure it says what to change."""
    progress: Progress | None = None
    """How far it came."""
    metrics: list[Metric] = []
    """Latest values."""
    modules: list[ModuleStatus] = []
    """One row per module."""
    checkpoint: CheckpointStatus | None = None
    """The last checkpoint."""
    output: OutputStatus | None = None
    """The result."""

    def termination_message(self) -> str:
        """The report as JSON of at most 4,096 bytes; rows are dropped before words are."""
        droppable: tuple[set[str], ...] = (set(), {"modules"}, {"modules", "metrics"})
        for dropped in droppable:
            text = self.model_dump_json(by_alias=True, exclude_none=True, exclude=dropped)
            if len(text.encode()) <= TERMINATION_MESSAGE_BYTES:
                return text
        return Report(reason=self.reason, message=self.message[:500]).model_dump_json(by_alias=True, exclude_none=True)
