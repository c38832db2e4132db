"""The dtypes of a model's weights: in memory while it trains, and in the output.

Trainable weights are FP32, because 16-bit weights lose small updates. Weights that are never trained keep the 16-bit
dtype of their file if the computation is 16-bit, too: they would be cast in each forward pass anyway. The output has
the dtypes of the files, unless the job sets one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finetune_trainer.training.device import DeviceConfig

HALF = (torch.bfloat16, torch.float16)
NORMALIZATION, CAST_BY_AUTOCAST = re.compile("Norm"), re.compile(r"^(Linear|Conv[123]d)$")
OUTPUT_DTYPES = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}


@dataclass(frozen=True)
class OutputDtypes:
    """The dtypes of the output.

    Args:
        by_name: dtype of each floating-point weight and buffer that is saved.
        config: dtype for the model's config: that of most weights.
    """

    by_name: Mapping[str, torch.dtype] = field(default_factory=dict)
    config: torch.dtype = torch.float32


def set_frozen_dtypes(
    model: nn.Module, trainable: Collection[str], sources: Mapping[str, torch.dtype], device_config: DeviceConfig
) -> None:
    """Convert the weights that are never trained to the dtype of their file, if it and the computation are 16-bit.

    Vectors and the weights of normalization layers stay FP32: they need little memory, and kernels for normalization
    do not support inputs, weights and statistics of different dtypes. If the dtypes of file and computation are two
    different 16-bit ones, only the weights of linear and convolution layers are converted: autocast casts them, and
    rejects other operations on both.

    Args:
        model: the model, in FP32.
        trainable: names of the parameters that are trainable at some step.
        sources: dtype of each weight in its file, by name.
        device_config: the precision of the computation.
    """
    if device_config.autocast_dtype not in HALF:
        return
    excluded = _weights_of(model, NORMALIZATION).union(trainable)
    cast_by_autocast = _weights_of(model, CAST_BY_AUTOCAST)
    for name, parameter in model.named_parameters():
        source = sources.get(name)
        is_supported = source == device_config.autocast_dtype or (source in HALF and name in cast_by_autocast)
        if parameter.ndim > 1 and name not in excluded and is_supported:
            parameter.data = parameter.data.to(sources[name])


def widen_weights(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Convert weights to FP32 that are to receive FP32 values: an earlier attempt trained them."""
    for name, parameter in model.named_parameters():
        if name in values and values[name].dtype == torch.float32:
            parameter.data = parameter.data.float()


def choose_output_dtypes(
    model: nn.Module, sources: Mapping[str, torch.dtype], output_dtype: str | None
) -> OutputDtypes:
    """The dtypes of the output.

    Args:
        model: the model.
        sources: dtype of each weight in its file, by name.
        output_dtype: `output.dtype`; None for the dtypes of the files. Buffers, such as running statistics, keep the
            dtype of the files in any case.
    """
    chosen = OUTPUT_DTYPES.get(output_dtype or "")
    parameters = dict(model.named_parameters())
    most_common = chosen or _most_common_dtype(parameters, sources)
    by_name = {name: chosen or _saved_dtype(sources.get(name, most_common)) for name in parameters}
    buffers = {name for name in model.state_dict() if name in dict(model.named_buffers())}
    by_name |= {name: _saved_dtype(sources[name]) for name in buffers if name in sources}
    floating = {name: tensor.is_floating_point() for name, tensor in model.state_dict().items()}
    return OutputDtypes({name: dtype for name, dtype in by_name.items() if floating[name]}, most_common)


@torch.no_grad()
def round_weights(model: nn.Module, output: OutputDtypes) -> bool:
    """Round the weights to the dtypes of the output, in place; metrics are then those of the output.

    Returns:
        Whether a value changed.
    """
    changed = [_round(tensor, dtype) for tensor, dtype in _weights(model, output)]
    return any(changed)


def cast_weights(model: nn.Module, output: OutputDtypes) -> list[str]:
    """Convert the weights to the dtypes of the output; the model computes no more after that.

    Returns:
        The names of weights that stay FP32, because they have values above the maximum of FP16.
    """
    kept = []
    names = {id(tensor): name for name, tensor in _named_tensors(model).items()}
    for tensor, dtype in _weights(model, output):
        if _overflows(tensor, dtype):
            kept.append(names[id(tensor)])
        else:
            tensor.data = tensor.data.to(dtype)
    return kept


def _weights(model: nn.Module, output: OutputDtypes) -> list[tuple[Tensor, torch.dtype]]:
    tensors = _named_tensors(model)
    return [(tensors[name], dtype) for name, dtype in output.by_name.items() if tensors[name].dtype != dtype]


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def _round(tensor: Tensor, dtype: torch.dtype) -> bool:
    if _overflows(tensor, dtype):
        return False
    rounded = tensor.to(dtype).to(tensor.dtype)
    if torch.equal(rounded, tensor):
        return False
    tensor.copy_(rounded)
    return True


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a finite value becomes infinite."""
    if torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max:
        return False
    return bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any())


def _most_common_dtype(parameters: Mapping[str, Tensor], sources: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype of most elements."""
    count: Counter[torch.dtype] = Counter()
    for name, parameter in parameters.items():
        if name in sources and sources[name].is_floating_point:
            count[_saved_dtype(sources[name])] += parameter.numel()
    return max(count, key=lambda dtype: count[dtype], default=torch.float32)


def _saved_dtype(source: torch.dtype) -> torch.dtype:
    """FP64 weights are loaded, and saved, as FP32."""
    return source if source in HALF else torch.float32


def _weights_of(model: nn.Module, pattern: re.Pattern[str]) -> set[str]:
    """The names of the parameters of layers whose class name matches."""
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if pattern.search(type(module).__name__)
        for parameter, _ in module.named_parameters(recurse=False)
    }
