"""Loads models and their processors: safetensors only, no code from the repository, FP32 weights.

A model can also be built without weights, on the meta device: its parameter names are all that a plan needs.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
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
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.modules import Parameter
from finetune_trainer.places import Places
from finetune_trainer.tasks.base import Processors, Task

PASSING = {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ETIMEDOUT}
"""Troubles of a disk or a network that have an end."""

UNBOUNDED = 100_000
"""Tokenizers without a longest text say a number beyond this."""


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
            reason = str(error).strip().split("\n")[0]
            kind = RunError if _may_pass(error) else UserError
            raise kind(f"model.source: {self.source}: cannot load the {what} from {self.name}: {reason}") from error


def find(model: ModelSource, places: Places) -> Pretrained:
    """Where the model is."""
    location = locate(model.source)
    if location.scheme == "hf":
        return Pretrained(model.source, location.name, model.revision)
    folder = places.existing(model.source, "model.source")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.source: {model.source}: {folder} holds no model: it has no config.json")
    return Pretrained(model.source, str(folder), None)


def load_config(pretrained: Pretrained) -> PretrainedConfig:
    config: PretrainedConfig = pretrained.load(AutoConfig.from_pretrained, "config")
    return config


def skeleton(task: Task | type[Task], config: PretrainedConfig) -> PreTrainedModel:
    """The model without its weights: names and shapes. A task's class will do where the data are out of reach."""
    with torch.device("meta"):
        model: PreTrainedModel = task.auto_class.from_config(config, dtype=torch.float32)
    return model


def load_model(pretrained: Pretrained, task: Task, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """The model with its weights, and the names of those that are new because the files do not hold them."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with _quiet():
        model, info = pretrained.load(
            task.auto_class.from_pretrained,
            "weights",
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head for other classes; it is reported as new
            output_loading_info=True,
        )
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    return model, sorted({*info["missing_keys"], *mismatched})


def load_processors(pretrained: Pretrained, task: Task, config: PretrainedConfig, max_length: int | None) -> Processors:
    """The tokenizer, and the image processor if the task has images."""
    tokenizer = pretrained.load(AutoTokenizer.from_pretrained, "tokenizer")
    # Without its files transformers makes an empty tokenizer, to which every text is the same.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(
            f"model.source: {pretrained.source}: {pretrained.name} holds no tokenizer; save it beside the model, "
            "e.g. with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        config.pad_token_id = tokenizer.pad_token_id
    images = (
        pretrained.load(AutoImageProcessor.from_pretrained, "image processor") if "image" in task.required else None
    )
    longest = _longest_text(tokenizer, config)
    if max_length and max_length > longest:
        raise UserError(f"data.maxLength: {max_length} is more than the {longest} tokens that the model takes")
    return Processors(tokenizer, images, max_length or longest)


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Every parameter once, with all its names."""
    found: dict[int, tuple[list[str], int]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter.numel()))[0].append(name)
    return [Parameter(tuple(names), elements) for names, elements in found.values()]


def _may_pass(error: BaseException | None) -> bool:
    """Whether trying again may help: the hub or the disk is in trouble, not the job."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        # By name: which HTTP library the hub's client uses is its own affair, and changes.
        unreachable = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
        if unreachable or status == 429 or status >= 500:
            return True
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def _longest_text(tokenizer: Any, config: PretrainedConfig) -> int:
    text = getattr(config, "text_config", config)
    limits: list[int | None] = [tokenizer.model_max_length, getattr(text, "max_position_embeddings", None)]
    return min([limit for limit in limits if limit and limit < UNBOUNDED] or [512])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own report of new weights down: ours says it in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
