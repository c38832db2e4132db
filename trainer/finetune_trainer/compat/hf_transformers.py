"""Internals of `transformers`: which classes build which models, and how weights are initialized.

Used as of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING

VISION_LANGUAGE_ARCHITECTURES = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
"""Names of the classes that AutoModelForImageTextToText builds."""


@dataclass(frozen=True)
class LoadedKeys:
    """What loading a model's weights does, by transformers' own rules.

    Args:
        dtypes: dtype that each weight has in the files, by its name in the model.
        missing: names in the model for which the files have no tensor.
        unexpected: names, in the files, of tensors that the model does not have.
        mismatched: name, shape in the files and shape in the model.
        tied: names of two weights that are tied in the model, but both in the files; their names in the files.
        duplicates: names in the files of several tensors for the same weight.
    """

    dtypes: Mapping[str, torch.dtype]
    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    tied: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]


class _MetaTensor:
    """A tensor without values, which keeps its dtype when it is loaded."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape, self.dtype = tensor, tensor.shape, tensor.dtype

    def __getitem__(self, index: Any) -> _MetaTensor:
        return self

    def to(self, **_: Any) -> Tensor:
        return self.tensor


def simulate_loading(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> LoadedKeys | None:
    """Load tensors without values into a model on the meta device, with all renaming and conversion of transformers.

    Args:
        model: the model; its parameters are replaced.
        tensors: tensors on the meta device, by their names in the files.

    Returns:
        None if the tensors cannot be converted without their values.
    """
    originals, weights = _original_names(model, list(tensors)), set(model.state_dict())
    load_config = LoadStateDictConfig(
        device_map={"": "meta"},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]
    )
    tied_keys = dict(model.all_tied_weights_keys)
    info, _ = convert_and_load_state_dict_in_model(
        model, {name: _MetaTensor(tensor) for name, tensor in tensors.items()}, load_config
    )
    if info.conversion_errors or info.error_msgs:
        return None
    missing = set(info.missing_keys)
    both = [pair for pair in tied_keys.items() if not missing.intersection(pair)]
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items() if name not in missing}
    return LoadedKeys(
        dtypes,
        frozenset(missing),
        frozenset(name for key in info.unexpected_keys for name in originals.get(key, [key])),
        tuple((name, tuple(actual), tuple(expected)) for name, actual, expected in sorted(info.mismatched_keys)),
        tuple((originals.get(a, [a])[0], originals.get(b, [b])[0]) for a, b in both),
        tuple(tuple(names) for key, names in originals.items() if len(names) > 1 and key in weights),
    )


def is_optional_weight(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's class says that files may lack a weight, such as a bias that is 0."""
    return _matches(name, model._keys_to_ignore_on_load_missing)


def is_optional_tensor(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's class says that files may have a tensor that the model does not use."""
    return _matches(name, model._keys_to_ignore_on_load_unexpected)


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def tied_weight(model: PreTrainedModel, name: str) -> str | None:
    """The weight to which another one is tied in models of this class with `tie_word_embeddings`."""
    keys = model._tied_weights_keys
    return keys.get(name) if isinstance(keys, Mapping) else None


def _original_names(model: PreTrainedModel, names: Sequence[str]) -> dict[str, list[str]]:
    """The names in the files of each weight that is renamed, but not converted."""
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    originals: dict[str, list[str]] = {}
    for name in sorted(names, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if key not in state and name in state:
            key, pattern = name, None
        if pattern is None or key not in state:
            originals.setdefault(key, []).append(name)
    return originals


def base_model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that AutoModel builds for a config; None if there is none."""
    classes = MODEL_MAPPING.get(type(config), None)
    return classes[0] if isinstance(classes, tuple) else classes


def router_coefficient(model: nn.Module) -> float:
    """The coefficient with which a mixture-of-experts model adds its load balancing loss."""
    base = model
    while not isinstance(base, PreTrainedModel):  # wrappers: DistributedDataParallel, torch.compile
        base = base.get_submodule("module" if hasattr(base, "module") else "_orig_mod")
    names = ("router_aux_loss_coef", "aux_loss_coef")
    return float(next(getattr(base, name) for name in names if hasattr(base, name)))


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


def encodes_with_backend(tokenizer: Any) -> bool:
    """Whether the token ids of a text are those of the Rust tokenizer: some classes change them."""
    from transformers import PreTrainedTokenizerFast  # imported here: a plan needs no tokenizer

    return tokenizer.is_fast and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
