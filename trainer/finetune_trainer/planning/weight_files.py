"""Reads names, shapes and dtypes of the tensors in a model's safetensors files, from their headers alone.

Headers are a few kilobytes at the start of each file, so weights can be checked against the model before anything is
loaded or downloaded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.sources import locate
from finetune_trainer import hub
from finetune_trainer.errors import RunError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig

    from finetune_trainer.planning.model_loader import PretrainedSource

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Names of the dtypes of safetensors in torch."""

BLOCK_ROWS = 4096
ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class TensorHeader:
    """Shape and safetensors dtype (`F32`, `BF16`) of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_mask_or_index(self) -> bool:
        """Whether it is no weight: an integer or boolean tensor, or an attention mask of shape (1, 1, n, n)."""
        if self.dtype in ("BOOL", "U8", "I8", "I16", "I32", "I64"):
            return True
        return len(self.shape) == 4 and self.shape[:2] == (1, 1) and self.shape[2] == self.shape[3]

    def to_meta(self) -> Tensor:
        """A tensor like it, without values."""
        import torch

        return torch.empty(self.shape, dtype=getattr(torch, DTYPES.get(self.dtype, "float32")), device="meta")


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a model's files.

    Args:
        tensors: header of each tensor, by its name in the files.
        files: file of each tensor; empty if the files are not on this machine.
    """

    tensors: Mapping[str, TensorHeader]
    files: Mapping[str, Path]

    @property
    def most_common_dtype(self) -> torch.dtype:
        """The dtype of most elements."""
        elements: Counter[torch.dtype] = Counter()
        for header in self.tensors.values():
            elements[header.to_meta().dtype] += math.prod(header.shape)
        return max(elements, key=lambda dtype: elements[dtype])

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same values. They are read in blocks, until the first difference."""
        from safetensors import safe_open

        if self.tensors[name].shape != self.tensors[other].shape:
            return False
        with safe_open(self.files[name], "pt") as file, safe_open(self.files[other], "pt") as other_file:
            left, right = file.get_slice(name), other_file.get_slice(other)
            rows = self.tensors[name].shape[0] if self.tensors[name].shape else 0
            starts = range(0, rows, BLOCK_ROWS)
            return all(bool((left[at : at + BLOCK_ROWS] == right[at : at + BLOCK_ROWS]).all()) for at in starts)


def read_headers(pretrained: PretrainedSource, config: PretrainedConfig) -> WeightFiles | None:
    """The headers of a model's weights.

    Returns:
        None if there are none: a plan needs no weights; or if the Hugging Face Hub has them and cannot be asked now.

    Raises:
        UserError: they are incomplete.
        RunError: they cannot be read now, but may be later.
    """
    if not _may_have_weights(pretrained):
        return None
    if locate(pretrained.source).scheme != "hf":
        folder = Path(pretrained.name_or_path)
        return _read_files(pretrained, _list_files(pretrained, folder, config))
    cached = _cached_files(pretrained, config)
    return _read_files(pretrained, cached) if cached else _read_remote(pretrained)


def _may_have_weights(pretrained: PretrainedSource) -> bool:
    folder = Path(pretrained.name_or_path)
    return locate(pretrained.source).scheme == "hf" or any(folder.glob("*.safetensors*"))


def _list_files(pretrained: PretrainedSource, folder: Path, config: PretrainedConfig) -> list[Path]:
    if (folder / ADAPTER_FILE).exists():
        raise UserError(
            f"model.source: {pretrained.source}: {folder} contains an adapter ({ADAPTER_FILE}): merge it into its "
            "base model with merge_and_unload of peft, and save the result with save_pretrained"
        )
    name = getattr(config, "transformers_weights", None) or WEIGHTS_FILE
    if (folder / name).is_file() and not name.endswith(".json"):
        return [folder / name]
    index = folder / (name if name.endswith(".json") else INDEX_FILE)
    if not index.is_file():
        raise UserError(missing_files_message(pretrained))
    return [folder / file for file in _files_of_index(pretrained, index)]


def _files_of_index(pretrained: PretrainedSource, index: Path) -> Sequence[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.source: {pretrained.source}: cannot read {index}: {error!r}") from error


def missing_files_message(pretrained: PretrainedSource) -> str:
    return (
        f"model.source: {pretrained.source}: cannot load the weights from {pretrained.name_or_path}: there is no "
        f"{WEIGHTS_FILE}, and other formats can run code when they are loaded; convert them with save_pretrained"
    )


def _cached_files(pretrained: PretrainedSource, config: PretrainedConfig) -> list[Path]:
    """The files of a repository of the Hugging Face Hub, if they are all in its cache."""
    from huggingface_hub import try_to_load_from_cache

    def find(name: str) -> Path | None:
        found = try_to_load_from_cache(pretrained.name_or_path, name, revision=pretrained.revision or "main")
        return Path(found) if isinstance(found, str) else None

    name = getattr(config, "transformers_weights", None) or WEIGHTS_FILE
    if not name.endswith(".json") and (file := find(name)):
        return [file]
    if not (index := find(name if name.endswith(".json") else INDEX_FILE)):
        return []
    found = [find(name) for name in _files_of_index(pretrained, index)]
    files = [file for file in found if file is not None]
    return files if len(files) == len(found) else []


def _read_files(pretrained: PretrainedSource, files: Sequence[Path]) -> WeightFiles:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorHeader] = {}
    by_name: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    part = file.get_slice(name)
                    tensors[name] = TensorHeader(tuple(part.get_shape()), part.get_dtype())
                    by_name[name] = path
        except (OSError, SafetensorError) as error:
            if hub.is_transient(error):
                raise RunError(f"model.source: {pretrained.source}: cannot read {path}: {error}") from error
            raise UserError(
                f"model.source: {pretrained.source}: cannot load the weights from {path}: {error}; the file is "
                "missing or incomplete: copy it again"
            ) from error
    return WeightFiles(tensors, by_name)


def _read_remote(pretrained: PretrainedSource) -> WeightFiles | None:
    """Ask the Hugging Face Hub for the headers; loading reports why it does not answer."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().get_safetensors_metadata(pretrained.name_or_path, revision=pretrained.revision)
    except Exception:  # noqa: BLE001 - of the network or the repository; loading reports it
        return None
    tensors = {
        name: TensorHeader(tuple(info.shape), info.dtype)
        for file in found.files_metadata.values()
        for name, info in file.tensors.items()
    }
    return WeightFiles(tensors, {})
