"""Fills in the defaults of a job that depend on other fields, on the job's name or on its task.

The result has narrower types: what may be unset in a manifest is set in an effective job. `finetune plan` prints it.
"""

from __future__ import annotations

from typing import Any, overload

from finetune_api.checkpoint import Output
from finetune_api.evaluation import Direction, Evaluation, MetricName
from finetune_api.job import FineTuneJob, JobSpec, Modules, Task
from finetune_api.metrics import find_direction
from finetune_api.resources import Device, Resources
from finetune_api.sources import Destination
from finetune_api.training import BatchSize, Training

DEFAULT_EPOCHS = 3.0
DEFAULT_MODULES: list[dict[str, Any]] = [
    {"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 5e-5}}
]
DEFAULT_SCHEDULE: list[dict[str, Any]] = [{"type": "Warmup", "fraction": 0.03}, {"type": "CosineAnnealing"}]
DEFAULT_METRIC = {
    "Contrastive": "eval/recall_at_1",
    "CausalLM": "eval/loss",
    "SequenceClassification": "eval/accuracy",
    "ImageClassification": "eval/accuracy",
}


class UnknownDirectionError(ValueError):
    """A job names a metric that is not in the table of metrics, and no direction."""


class EffectiveTraining(Training):
    micro_batch_size: BatchSize


class EffectiveEvaluation(Evaluation):
    metric: MetricName
    direction: Direction


class EffectiveOutput(Output):
    destination: Destination


class EffectiveResources(Resources):
    device: Device


class DefaultedSpec(JobSpec):
    """A spec with all defaults that do not depend on the task.

    The optimizer and the schedule of a module stay optional, because a frozen module has neither.
    """

    training: EffectiveTraining
    modules: Modules
    output: EffectiveOutput
    resources: EffectiveResources


class EffectiveSpec(DefaultedSpec):
    """A spec with all defaults."""

    task: Task
    evaluation: EffectiveEvaluation


class DefaultedJob(FineTuneJob):
    """A job with all defaults that do not depend on the task, which may be unknown."""

    spec: DefaultedSpec


class EffectiveJob(DefaultedJob):
    """A job with all defaults."""

    spec: EffectiveSpec


@overload
def with_defaults(job: FineTuneJob, task: str) -> EffectiveJob: ...
@overload
def with_defaults(job: FineTuneJob, task: str | None) -> DefaultedJob: ...
def with_defaults(job: FineTuneJob, task: str | None) -> DefaultedJob:
    """Fill in all defaults of a job.

    Args:
        task: the task of the job, from its spec or its model's config; None if it is unknown, in which case the
            evaluation keeps its unset fields.

    Raises:
        UnknownDirectionError: `evaluation.direction` has no default, because the metric is not in the table of metrics.
    """
    spec = job.spec.manifest()
    _default_training(spec["training"])
    if not spec["checkpoint"].keys() & {"everySteps", "everySeconds"}:
        spec["checkpoint"].setdefault("everyEpochs", 1.0)
    spec["output"].setdefault("destination", job.destination)
    resources = spec["resources"]
    resources.setdefault("device", "CUDA" if resources["gpusPerNode"] else "CPU")
    spec["modules"] = [_with_schedule(module) for module in spec.get("modules", DEFAULT_MODULES)]
    fields = {"metadata": job.metadata, "spec": spec, "status": job.status}
    if task is None:
        return DefaultedJob.model_validate(fields)
    spec["task"] = task
    _default_evaluation(spec["evaluation"], task)
    return EffectiveJob.model_validate(fields)


def _default_training(training: dict[str, Any]) -> None:
    if "steps" not in training:
        training.setdefault("epochs", DEFAULT_EPOCHS)
    training.setdefault("microBatchSize", training["batchSize"])


def _default_evaluation(evaluation: dict[str, Any], task: str) -> None:
    metric = evaluation.setdefault("metric", DEFAULT_METRIC[task])
    direction = evaluation.get("direction") or find_direction(metric)
    if direction is None:
        raise UnknownDirectionError(
            f"evaluation.direction: required for metric {metric!r}, which is not one of the metrics with a known "
            "direction; set it to Minimize or Maximize"
        )
    evaluation["direction"] = direction


def _with_schedule(module: dict[str, Any]) -> dict[str, Any]:
    return module if module.get("frozen") else {"schedule": DEFAULT_SCHEDULE, **module}
