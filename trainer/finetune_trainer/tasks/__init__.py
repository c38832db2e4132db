"""The tasks by their name in a manifest. To add one: a module with its class, and a line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoModelForImageTextToText, PretrainedConfig

from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.infer import infer_task_name
from finetune_trainer.tasks.sequence_classification import SequenceClassification

__all__ = ["TASKS", "Processors", "Task", "get_auto_class", "get_task", "infer_task"]

TASKS: Mapping[str, type[Task]] = {
    "Contrastive": Contrastive,
    "CausalLM": CausalLM,
    "SequenceClassification": SequenceClassification,
    "ImageClassification": ImageClassification,
}

PLAN_ONLY_AUTO_CLASSES: Mapping[str, Any] = {"ImageTextToText": AutoModelForImageTextToText}
"""Tasks that `finetune plan` knows and a run does not support yet."""


def get_task(name: str) -> type[Task]:
    """The task with this name.

    Raises:
        UserError: it is not supported yet.
    """
    if name not in TASKS:
        raise UserError(f"task: not yet supported: task {name}; supported are {', '.join(TASKS)}")
    return TASKS[name]


def get_auto_class(name: str) -> Any:
    """The transformers auto class that builds the model of a task.

    Raises:
        UserError: the task is not supported yet.
    """
    return PLAN_ONLY_AUTO_CLASSES[name] if name in PLAN_ONLY_AUTO_CLASSES else get_task(name).auto_class


def infer_task(config: PretrainedConfig) -> str:
    """The name of the task that a model was trained for.

    Raises:
        UserError: its config does not determine it.
    """
    if name := infer_task_name(config):
        return name
    architectures = ", ".join(config.architectures or ["unknown"])
    raise UserError(
        f"task: cannot be inferred from the model's config (model_type {config.model_type}, architectures "
        f"{architectures}); set it to one of {', '.join(TASKS)}"
    )
