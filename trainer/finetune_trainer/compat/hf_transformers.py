"""Internals of `transformers`: which classes build which models, and how weights are initialized.

Used as of transformers 5.23.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING

VISION_LANGUAGE_ARCHITECTURES = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
"""Names of the classes that AutoModelForImageTextToText builds."""


def base_model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that AutoModel builds for a config; None if there is none."""
    classes = MODEL_MAPPING.get(type(config), None)
    return classes[0] if isinstance(classes, tuple) else classes


def reinitialize(model: PreTrainedModel, module_name: str) -> None:
    """Initialize the direct parameters of a submodule as those of a new model."""
    module = model.get_submodule(module_name)
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    model._init_weights(module)  # type: ignore[no-untyped-call]


def disable_input_require_grads(model: PreTrainedModel) -> None:
    """Undo `enable_input_require_grads`, which activation checkpointing calls for its reentrant implementation."""
    if hasattr(model, "_require_grads_hooks"):
        model.disable_input_require_grads()  # type: ignore[no-untyped-call]
