"""Internals of `transformers`: which classes build which models, and how weights are initialized.

Used as of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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


def marks_generations(template: str) -> bool:
    """Whether a chat template marks what the assistant writes with `{% generation %}`."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def render_with_generations(
    tokenizer: Any, template: str, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation with a template that marks generations.

    `apply_chat_template` returns them only as a mask of tokens.

    Returns:
        The text, and start and end of each generation, in characters.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        conversations=[list(messages)],
        tools=None if tools is None else list(tools),
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    (text,), (generations,) = rendered
    return str(text), list(generations)
