"""Infers the task of a model from the names of its architectures.

The order of the checks matters: vision-language models are often called ForCausalLM, and dual encoders may have a head
for another task.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from finetune_trainer.compat.hf_transformers import VISION_LANGUAGE_ARCHITECTURES
from finetune_trainer.tasks.contrastive import is_dual_encoder

VISION_CONFIG_FIELDS = ("vision_config", "vq_config", "patch_size")
"""Fields that the configs of models with a vision encoder have."""


def infer_task_name(config: PretrainedConfig) -> str | None:
    """The name of the task; None if the config does not determine it."""
    tasks = {task for name in config.architectures or () if (task := _task_of_architecture(name, config))}
    if tasks:
        return tasks.pop() if len(tasks) == 1 else None
    has_head = any("For" in name for name in config.architectures or ())
    return "Contrastive" if is_dual_encoder(config) and not has_head else None


def _task_of_architecture(architecture: str, config: PretrainedConfig) -> str | None:
    if architecture.endswith("ForSequenceClassification"):
        return "SequenceClassification"
    if architecture.endswith("ForImageClassification"):
        return "ImageClassification"
    if _is_vision_language(architecture, config):
        return "ImageTextToText"
    return "CausalLM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None


def _is_vision_language(architecture: str, config: PretrainedConfig) -> bool:
    has_vision = any(hasattr(config, field) for field in VISION_CONFIG_FIELDS)
    if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")) and has_vision:
        return True
    return architecture in VISION_LANGUAGE_ARCHITECTURES and not architecture.endswith("ForCausalLM")
