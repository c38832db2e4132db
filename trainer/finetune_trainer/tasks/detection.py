"""What a model is obviously made for, from the names of its architectures.

Names are looked at in an order: a model with vision that writes text is often called ForCausalLM too, and a model that
compares images with texts may carry a head for something else.
"""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from finetune_trainer.tasks.contrastive import is_dual_encoder

VISION_LANGUAGE = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
VISION_FIELDS = ("vision_config", "vq_config", "patch_size")


def obvious(config: PretrainedConfig) -> str | None:
    """Name of the task; None where it is not clear."""
    found = {task for name in config.architectures or () if (task := _task_of(name, config))}
    if found:
        return found.pop() if len(found) == 1 else None
    made_for_more = any("For" in name for name in config.architectures or ())
    return "Contrastive" if is_dual_encoder(config) and not made_for_more else None


def _task_of(architecture: str, config: PretrainedConfig) -> str | None:
    if architecture.endswith("ForSequenceClassification"):
        return "SequenceClassification"
    if architecture.endswith("ForImageClassification"):
        return "ImageClassification"
    if _sees_and_writes(architecture, config):
        return "ImageTextToText"
    return "CausalLM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None


def _sees_and_writes(architecture: str, config: PretrainedConfig) -> bool:
    has_vision = any(hasattr(config, field) for field in VISION_FIELDS)
    if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")) and has_vision:
        return True
    return architecture in VISION_LANGUAGE and not architecture.endswith("ForCausalLM")
