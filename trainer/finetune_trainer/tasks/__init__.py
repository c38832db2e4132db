"""The tasks, by the name they have in a manifest. To add one: a file with its class, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PretrainedConfig

from finetune_trainer.errors import UserError
from finetune_trainer.tasks.base import Processors, Task
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.sequence_classification import SequenceClassification

__all__ = ["TASKS", "Processors", "Task", "detect"]

TASKS: Mapping[str, type[Task]] = {
    "Contrastive": Contrastive,
    "SequenceClassification": SequenceClassification,
}


def detect(config: PretrainedConfig) -> str:
    """The task that a model is obviously made for.

    Raises:
        UserError: it is not clear.
    """
    suited = [name for name, task in TASKS.items() if task.suits(config)]
    if len(suited) == 1:
        return suited[0]
    made_for = ", ".join(config.architectures or ["unknown"])
    raise UserError(
        f"task: not clear from the model's config (model_type {config.model_type}, architectures {made_for}); "
        f"say one of {', '.join(TASKS)}"
    )
