"""Loads models and their processors: safetensors only, no code from the repository, FP32 weights.

A model can also be built without weights, on the meta device: its parameter names are all that a plan needs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from finetune_api.model import ModelSource
from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.compat.hf_transformers import disable_input_require_grads, reinitialize
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.planning.modules import Parameter
from finetune_trainer.tasks.base import Processors, Task

UNBOUNDED = 10**9
"""Tokenizers without a longest text say a number beyond this."""

USUAL_LENGTH = 512
"""Longest text in tokens where neither the model nor the job says one."""

PADDED_TO_THE_END = ("siglip", "siglip2")
"""Models that look at the last position, whatever is there, and were trained with every text padded to the longest."""


@dataclass(frozen=True)
class Pretrained:
    """Where a model is loaded from: a repository of the hub or a folder."""

    source: str
    name: str
    revision: str | None

    def load(self, load: Callable[..., Any], what: str, **arguments: Any) -> Any:
        """Call a `from_pretrained`; what it says about files that are not there is for the user.

        Raises:
            UserError: it cannot be loaded.
            RunError: it cannot be loaded now.
        """
        if self.revision:
            arguments["revision"] = self.revision
        try:
            return load(self.name, trust_remote_code=False, **arguments)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            if locate(self.source).scheme == "hf" and (told := hub.explain(error, self._repository)):
                raise told from error
            kind = RunError if hub.is_transient(error) else UserError
            reason = hub.first_line(error)
            raise kind(f"model.source: {self.source}: cannot load the {what} from {self.name}: {reason}") from error

    @property
    def _repository(self) -> hub.Repository:
        return hub.Repository("model", self.source, self.revision, "model")


def find(model: ModelSource, claim_paths: ClaimPaths) -> Pretrained:
    """Where the model is."""
    location = locate(model.source)
    if location.scheme == "hf":
        return Pretrained(model.source, location.name, model.revision)
    folder = claim_paths.existing(model.source, "model.source")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.source: {model.source}: {folder} holds no model: it has no config.json")
    return Pretrained(model.source, str(folder), None)


def load_config(pretrained: Pretrained) -> PretrainedConfig:
    config: PretrainedConfig = pretrained.load(AutoConfig.from_pretrained, "config")
    return config


def skeleton(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The model that a transformers auto class builds, without its weights: names and shapes.

    Raises:
        UserError: it does not build one from this config.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.source: {auto_class.__name__}, as the task needs it, builds no {config.model_type} model: {reason}"
        ) from error
    return model


def load_model(
    pretrained: Pretrained, task: Task, config: PretrainedConfig
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """The model with its weights, and the names of those that are new, by the reason why.

    Raises:
        UserError: the weights are not those of the config.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with _quiet():
            model, info = pretrained.load(
                task.auto_class.from_pretrained,
                "weights",
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other classes; whatever else does not fit is refused below
                output_loading_info=True,
            )
    except UserError as error:
        if "named model.safetensors" in str(error):
            raise UserError(
                f"model.source: {pretrained.source}: cannot load the weights from {pretrained.name}: it holds no file "
                "named model.safetensors, and others can run code when they are opened; convert them with "
                "save_pretrained"
            ) from error
        raise
    head = _begin_head_anew(model, task) if task.new_head else []
    _check_shapes(pretrained, [found for found in sorted(info["mismatched_keys"]) if found[0] not in head])
    missing = sorted(info["missing_keys"])
    replaced = sorted(set(head).difference(missing))
    reasons = {"the model does not hold them": missing, "the model's classes are others than the data's": replaced}
    return model, {reason: names for reason, names in reasons.items() if names}


def make_ready(model: PreTrainedModel, task: Task, processors: Processors, activation_checkpointing: bool) -> None:
    """Set what is not part of the weights.

    Raises:
        UserError: the model cannot compute its activations again.
    """
    if task.uses_config_pad_token and model.config.get_text_config().pad_token_id is None:
        # Only now: a model that is built with it never learns the embedding of this token, which may be a real one.
        model.config.get_text_config().pad_token_id = processors.tokenizer.pad_token_id
    if activation_checkpointing:
        _checkpoint_activations(model)


def load_processors(pretrained: Pretrained, task: Task, config: PretrainedConfig, max_length: int | None) -> Processors:
    """The tokenizer if the task has text, and the image processor if it has images."""
    images = pretrained.load(AutoImageProcessor.from_pretrained, "image processor") if task.uses_images else None
    if not task.uses_text:
        if max_length:
            raise UserError(f"data.maxLength: {max_length}: task {type(task).__name__} reads no text; leave it out")
        return Processors(None, images, None)
    tokenizer = _load_tokenizer(pretrained)
    limit = _longest_text(tokenizer, config)
    if max_length and limit and max_length > limit:
        raise UserError(f"data.maxLength: {max_length} is more than the {limit} tokens that the model takes")
    to_the_end = config.model_type in PADDED_TO_THE_END
    longest = max_length or limit or USUAL_LENGTH
    return Processors(tokenizer, images, longest, "max_length" if to_the_end else "longest")


def _load_tokenizer(pretrained: Pretrained) -> Any:
    tokenizer = pretrained.load(AutoTokenizer.from_pretrained, "tokenizer")
    # Without its files transformers makes an empty tokenizer, to which every text is the same.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(
            f"model.source: {pretrained.source}: {pretrained.name} holds no tokenizer; save it beside the model, "
            "e.g. with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model.source: {pretrained.source}: its tokenizer has no token to pad with: set pad_token "
                "and save it with tokenizer.save_pretrained"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_shapes(pretrained: Pretrained, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse weights that do not fit: transformers would begin them anew, and what they knew would be gone."""
    if not mismatched:
        return
    name, held, expected = mismatched[0]
    more = f" (and {len(mismatched) - 1} more do not fit)" if len(mismatched) > 1 else ""
    raise UserError(
        f"model.source: {pretrained.source}: {name} has shape {list(held)} in the files of {pretrained.name}, but "
        f"{list(expected)} by its config.json{more}: take the config that these weights were saved with"
    )


def _begin_head_anew(model: PreTrainedModel, task: Task) -> list[str]:
    """Fresh weights for a head that fits in size only: those that would be of another size for one class more."""
    more = copy.deepcopy(model.config)
    more.num_labels = len(model.config.id2label or ()) + 1
    others = dict(skeleton(task.auto_class, more).named_parameters())
    names = [name for name, weight in model.named_parameters() if weight.shape != others[name].shape]
    for name in {name.rpartition(".")[0] for name in names}:
        reinitialize(model, name)
    return names


def _checkpoint_activations(model: PreTrainedModel) -> None:
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(
            f"training.activationCheckpointing: a {model.config.model_type} model cannot compute activations again; "
            "leave it out"
        ) from error
    # Without reentrance the inputs need no gradient, and frozen embeddings no backward pass.
    disable_input_require_grads(model)


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Every parameter once, with all its names."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return [Parameter(tuple(names), parameter.numel(), parameter.ndim) for names, parameter in found.values()]


def _longest_text(tokenizer: Any, config: PretrainedConfig) -> int | None:
    """Longest text in tokens that tokenizer and model take; None where neither says one."""
    text = getattr(config, "text_config", config)
    limits: list[int | None] = [tokenizer.model_max_length, getattr(text, "max_position_embeddings", None)]
    return min((limit for limit in limits if limit and limit < UNBOUNDED), default=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own report of new weights down: ours says it in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
