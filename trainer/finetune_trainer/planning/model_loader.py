"""Loads models and their processors: safetensors only, no code from the repository.

A model can also be built without weights, on the meta device, which is all that a plan needs. What only a run needs
(tokenizers, image processors, torchvision with them) is imported by the functions that need it: importing it takes
longer than planning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finetune_api.model import ModelSource
from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.planning.image_channels import DEFAULT_CHANNELS, image_channels
from finetune_trainer.planning.parameters import ParameterInfo
from finetune_trainer.planning.weight_check import POOLERS, WeightCheck, WeightReport, check_duplicates, check_ties
from finetune_trainer.planning.weight_files import missing_files_message, read_headers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from finetune_trainer.tasks.base import Processors, Task

NO_MAX_LENGTH = 10**9
"""Tokenizers without a maximum length report a number above this."""

POSITION_EMBEDDINGS = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")
"""Names that transformers gives to tables of position embeddings."""

DEFAULT_MAX_LENGTH = 512
"""Maximum number of tokens where neither the model nor the job sets one."""

PAD_TO_MAX_LENGTH = ("siglip", "siglip2")
"""Model types that were trained with every text padded to the maximum length, and read the last position."""


@dataclass(frozen=True)
class PretrainedSource:
    """Where a model is loaded from: a repository of the Hugging Face Hub, or a folder.

    Args:
        source: as in the manifest.
        name_or_path: as `from_pretrained` takes it.
        revision: of the repository; None for a folder.
    """

    source: str
    name_or_path: str
    revision: str | None

    def load(self, from_pretrained: Callable[..., Any], what: str, **arguments: Any) -> Any:
        """Call a `from_pretrained`, and turn its errors into the user's.

        Raises:
            UserError: it cannot be loaded.
            RunError: it cannot be loaded now, but may be later.
        """
        from safetensors import SafetensorError

        if self.revision:
            arguments["revision"] = self.revision
        try:
            return from_pretrained(self.name_or_path, trust_remote_code=False, **arguments)
        except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
            is_hub = locate(self.source).scheme == "hf"
            if is_hub and (explanation := hub.explain(error, self._repository)):
                raise explanation from error
            kind = RunError if hub.is_transient(error) else UserError
            reason = hub.first_line(error)
            message = f"model.source: {self.source}: cannot load the {what} from {self.name_or_path}: {reason}"
            raise kind(message) from error

    @property
    def _repository(self) -> hub.Repository:
        return hub.Repository("model", self.source, self.revision, "model")


def resolve_model(model: ModelSource, claim_paths: ClaimPaths) -> PretrainedSource:
    """Find the model's repository or folder.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    location = locate(model.source)
    if location.scheme == "hf":
        return PretrainedSource(model.source, location.name, model.revision)
    folder = claim_paths.resolve(model.source, "model.source")
    if not (folder / "config.json").is_file():
        raise UserError(f"model.source: {model.source}: {folder} contains no model: there is no config.json")
    return PretrainedSource(model.source, str(folder), None)


def load_config(pretrained: PretrainedSource) -> PretrainedConfig:
    """The model's config.

    Raises:
        UserError, RunError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = pretrained.load(AutoConfig.from_pretrained, "config")
    except (AttributeError, TypeError) as error:  # a field of another type than transformers expects
        raise UserError(
            f"model.source: {pretrained.source}: config.json is not a valid config: {hub.first_line(error)}"
        ) from error
    if quantization := getattr(config, "quantization_config", None):
        fields = quantization if isinstance(quantization, dict) else vars(quantization)
        raise UserError(
            f"model.source: {pretrained.source}: its weights are quantized ({fields.get('quant_method', 'unknown')}, "
            "quantization_config in config.json), which is not supported; use the weights before quantization"
        )
    return config


def load_declared_config(pretrained: PretrainedSource) -> dict[str, Any]:
    """The fields of `config.json`. A loaded config lacks what transformers dropped, and has its defaults.

    Raises:
        UserError, RunError: it cannot be loaded.
    """
    from transformers import PretrainedConfig

    fields, _ = pretrained.load(PretrainedConfig.get_config_dict, "config")
    return dict(fields)


def build_meta_model(auto_class: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a transformers auto class on the meta device: names and shapes, no weights.

    Raises:
        UserError: the class has no model for this config.
    """
    import torch

    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.source: the task needs an {auto_class.__name__}, which cannot be built from a model of type "
            f"{config.model_type}: {reason}"
        ) from error
    return model


def list_parameters(model: nn.Module) -> list[ParameterInfo]:
    """Every parameter once, with all its names."""
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    return [ParameterInfo(tuple(found), shapes[key]) for key, found in names.items()]


def check_weights(
    pretrained: PretrainedSource, config: PretrainedConfig, model: PreTrainedModel, new_head: bool
) -> WeightReport | None:
    """Check the headers of the weights before anything is loaded.

    Args:
        pretrained: where the weights are loaded from.
        config: the model's config.
        model: the model on the meta device; its parameters are replaced.
        new_head: whether the task makes the head anew.

    Returns:
        None if the headers are not available now; loading the weights reports why.

    Raises:
        UserError: the weights do not fit the model.
        RunError: they cannot be read now, but may be later.
    """
    from finetune_trainer.compat.hf_transformers import simulate_loading

    if (files := read_headers(pretrained, config)) is None:
        return None
    head = head_weights(model) if new_head else frozenset()
    with _silence_transformers():
        keys = simulate_loading(model, {name: header.to_meta() for name, header in files.tensors.items()})
    if keys is None:  # loading checks the weights; their dtypes are known as a whole
        return WeightReport(dtypes=dict.fromkeys(dict(model.named_parameters()), files.most_common_dtype))
    check_ties(pretrained, files, keys.tied)
    check_duplicates(pretrained, keys.duplicates)
    report = WeightCheck(pretrained, model, head, files.tensors).run(keys.missing, keys.unexpected, keys.mismatched)
    return replace(report, dtypes=keys.dtypes)


def load_model(
    pretrained: PretrainedSource, task: Task, config: PretrainedConfig
) -> tuple[PreTrainedModel, dict[str, Sequence[str]]]:
    """The model with its weights, and the names of newly initialized weights by the reason for it.

    Raises:
        UserError: the weights do not fit the config.
    """
    import torch

    try:
        with _silence_transformers():
            model, info = pretrained.load(
                task.auto_class.from_pretrained,
                "weights",
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # for a head with other classes; any other mismatch is an error below
                output_loading_info=True,
            )
    except UserError as error:
        if "named model.safetensors" in str(error):
            raise UserError(missing_files_message(pretrained)) from error
        raise
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise UserError(
            f"model.source: {pretrained.source}: the weights in {pretrained.name_or_path} cannot be converted to those "
            f"of a {config.model_type} model: tensors that belong together, such as those of all experts, have "
            "different shapes; use the config that the weights were saved with"
        ) from error
    head = head_weights(model) if task.new_head else frozenset()
    files = read_headers(pretrained, config)
    check = WeightCheck(pretrained, model, head, files.tensors if files else {})
    reasons = dict(check.run(info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]).new)
    replaced = sorted(set(_reinitialize_head(model) if task.new_head else []).difference(info["missing_keys"]))
    if replaced:
        reasons[task.new_head_reason] = replaced
    return model, reasons


def head_weights(model: PreTrainedModel) -> frozenset[str]:
    """The names of the weights of a classification head, with the pooler before it.

    They are outside the base model; in models without one, next to the weights whose shape depends on the number of
    classes.
    """
    names, base = list(model.state_dict()), model.base_model_prefix
    if model.base_model is not model:
        heads = [name for name in names if not name.startswith(f"{base}.")]
    else:
        parts = {name.partition(".")[0] for name in _class_weights(model)}
        heads = [name for name in names if name.partition(".")[0] in parts]
    return frozenset([*heads, *(name for name in names if set(name.split(".")).intersection(POOLERS))])


def configure_model(model: PreTrainedModel, task: Task, processors: Processors, activation_checkpointing: bool) -> None:
    """Set the padding token and activation checkpointing, which are not part of the weights.

    Raises:
        UserError: the model does not support activation checkpointing.
    """
    if task.uses_config_pad_token and model.config.get_text_config().pad_token_id is None:
        # Not before the model is built: it would never train the embedding of this token, which may be a regular one.
        model.config.get_text_config().pad_token_id = processors.tokenizer.pad_token_id
    if activation_checkpointing:
        _enable_activation_checkpointing(model)


def load_processors(
    pretrained: PretrainedSource, task: Task, config: PretrainedConfig, max_length: int | None
) -> Processors:
    """The tokenizer if the task has text, and the image processor if it has images.

    Raises:
        UserError: there are none, or `data.maxLength` does not fit the model.
    """
    from finetune_trainer.tasks.base import Processors

    images = _load_image_processor(pretrained) if task.uses_images else None
    channels = image_channels(config, images, pretrained.source) if images else DEFAULT_CHANNELS
    if not task.uses_text:
        if max_length:
            raise UserError(f"data.maxLength: {max_length}: task {type(task).__name__} reads no text; remove it")
        return Processors(None, images, None, num_channels=channels)
    tokenizer = _load_tokenizer(pretrained)
    limit = _max_length(tokenizer, config, build_meta_model(task.auto_class, config))
    if max_length and limit and max_length > limit:
        raise UserError(f"data.maxLength: {max_length} is more than the model's maximum of {limit} tokens")
    padding: Any = "max_length" if config.model_type in PAD_TO_MAX_LENGTH else "longest"
    return Processors(tokenizer, images, max_length or limit or DEFAULT_MAX_LENGTH, padding, channels)


def _load_image_processor(pretrained: PretrainedSource) -> Any:
    from transformers import AutoImageProcessor

    return pretrained.load(AutoImageProcessor.from_pretrained, "image processor")


def _load_tokenizer(pretrained: PretrainedSource) -> Any:
    from transformers import AutoTokenizer

    tokenizer = pretrained.load(AutoTokenizer.from_pretrained, "tokenizer")
    # Without its files transformers builds an empty tokenizer, which encodes every text the same.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) <= 1:
        raise UserError(
            f"model.source: {pretrained.source}: {pretrained.name_or_path} contains no tokenizer; save it next to the "
            "model, e.g. with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"model.source: {pretrained.source}: its tokenizer has no padding token; set pad_token, and save it "
                "with tokenizer.save_pretrained"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _class_weights(model: PreTrainedModel) -> list[str]:
    """The names of the parameters whose shape depends on the number of classes."""
    import torch

    one_more = copy.deepcopy(model.config)
    one_more.num_labels = len(model.config.id2label or ()) + 1
    with torch.device("meta"):
        others = dict(type(model)(one_more).named_parameters())
    return [name for name, weight in model.named_parameters() if name in others and weight.shape != others[name].shape]


def _reinitialize_head(model: PreTrainedModel) -> list[str]:
    """Initialize a head for other classes, even if it has the right size; return the names of its weights.

    They are the weights whose shape depends on the number of classes.
    """
    from finetune_trainer.compat.hf_transformers import reinitialize

    names = _class_weights(model)
    for name in {name.rpartition(".")[0] for name in names}:
        reinitialize(model, name)
    return names


def _enable_activation_checkpointing(model: PreTrainedModel) -> None:
    from finetune_trainer.compat.hf_transformers import disable_input_require_grads

    settings = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _keep_running_statistics(model))}
    try:
        model.activation_checkpointing_enable(settings)
    except ValueError as error:
        raise UserError(
            f"training.activationCheckpointing: models of type {model.config.model_type} do not support it; remove it"
        ) from error
    # Without reentrance the inputs need no gradient, and frozen embeddings no backward pass.
    disable_input_require_grads(model)


def _max_length(tokenizer: Any, config: PretrainedConfig, model: nn.Module) -> int | None:
    """Maximum number of tokens that tokenizer and model support; None where neither sets one."""
    text = getattr(config, "text_config", config)
    positions = count_positions(model) or getattr(text, "max_position_embeddings", None)
    limits: list[int | None] = [tokenizer.model_max_length, positions]
    return min((limit for limit in limits if limit and limit < NO_MAX_LENGTH), default=None)


def count_positions(model: nn.Module) -> int | None:
    """Number of tokens for which a model has position embeddings; None for a model without a table of them.

    Tables may have more rows: RoBERTa and its relatives number positions from `padding_idx + 1`, OPT and BART from 2.
    """
    from torch import nn

    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[2] in POSITION_EMBEDDINGS
        and not any(part.startswith(("vision", "visual", "image")) for part in name.split("."))
    ]
    return min((table.num_embeddings - _first_position(table) for table in tables), default=None)


def _first_position(table: nn.Embedding) -> int:
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return int(getattr(table, "offset", 0))


@contextmanager
def _keep_running_statistics(model: nn.Module) -> Iterator[None]:
    """Undo updates of running statistics while activations are recomputed: the first pass has made them."""
    layers = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    saved = [(layer, name, buffer) for layer in layers for name, buffer in layer.named_buffers(recurse=False)]
    for layer, name, buffer in saved:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in saved:
            setattr(layer, name, buffer)


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Suppress transformers' table of new weights, which ours replaces by one line."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
