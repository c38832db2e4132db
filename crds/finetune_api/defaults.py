"""The effective job: what a manifest means once everything left out is filled in. `finetune plan` prints it."""

from __future__ import annotations

from typing import Any

from finetune_api.job import FineTuneJob, JobSpec

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


def with_defaults(job: FineTuneJob, task: str | None) -> FineTuneJob:
    """Fill in every default; without a task, all but how it is evaluated, which is all that depends on it."""
    spec = job.spec.manifest()
    _fill_training(spec["training"])
    if task is not None:
        spec["task"] = task
        _fill_evaluation(spec["evaluation"], task)
    if "everySteps" not in spec["checkpoint"]:
        spec["checkpoint"].setdefault("everyEpochs", 1.0)
    spec["output"].setdefault("destination", job.destination)
    resources = spec["resources"]
    resources.setdefault("device", "CUDA" if resources["gpusPerNode"] else "CPU")
    spec["modules"] = [_filled_module(module) for module in spec.get("modules", DEFAULT_MODULES)]
    return job.model_copy(update={"spec": JobSpec.model_validate(spec)})


def minimizes(metric: str) -> bool:
    """Whether a metric gets better as it falls: losses and error rates do."""
    return any(word in metric for word in ("loss", "perplexity", "error"))


def _fill_training(training: dict[str, Any]) -> None:
    if "steps" not in training:
        training.setdefault("epochs", DEFAULT_EPOCHS)
    training.setdefault("microBatchSize", training["batchSize"])


def _fill_evaluation(evaluation: dict[str, Any], task: str) -> None:
    metric = evaluation.setdefault("metric", DEFAULT_METRIC[task])
    evaluation.setdefault("direction", "Minimize" if minimizes(metric) else "Maximize")


def _filled_module(module: dict[str, Any]) -> dict[str, Any]:
    if module.get("frozen"):
        return module
    return {"schedule": DEFAULT_SCHEDULE, **module}
