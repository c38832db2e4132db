"""The tasks, by the name they have in a manifest. To add one: a file with its class, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoModelForImageTextToText, PretrainedConfig

from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.detection import obvious
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.sequence_classification import SequenceClassification

__all__ = ["TASKS", "Processors", "Task", "auto_class", "detect", "find"]

TASKS: Mapping[str, type[Task]] = {
    "Contrastive": Contrastive,
    "CausalLM": CausalLM,
    "SequenceClassification": SequenceClassification,
    "ImageClassification": ImageClassification,
}

PLANNED: Mapping[str, Any] = {"ImageTextToText": AutoModelForImageTextToText}
"""Tasks that are recognized and planned for, but not yet learned."""


def find(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        UserError: there is none yet.
    """
    if name not in TASKS:
        raise UserError(f"task: not yet supported: task {name}; supported are {', '.join(TASKS)}")
    return TASKS[name]


def auto_class(name: str) -> Any:
    """The transformers class that builds the model of a task, of one that is only planned for too."""
    return PLANNED[name] if name in PLANNED else find(name).auto_class


def detect(config: PretrainedConfig) -> str:
    """The task that a model is obviously made for.

    Raises:
        UserError: it is not clear.
    """
    if task := obvious(config):
        return task
    made_for = ", ".join(config.architectures or ["unknown"])
    raise UserError(
        f"task: not clear from the model's config (model_type {config.model_type}, architectures {made_for}); "
        f"say one of {', '.join(TASKS)}"
    )
