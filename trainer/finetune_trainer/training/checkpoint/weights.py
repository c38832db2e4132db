"""The weights of a model by name, and hashes of those that a checkpoint does not store.

A parameter that is never trained has the value of the pretrained model. It is not written with every checkpoint; its
hash shows on resume that the pretrained model still has the same value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor, nn

from finetune_trainer.errors import UserError
from finetune_trainer.training.dtypes import widen_weights

HASH_THREADS = 4
"""hashlib releases the GIL, so several tensors are hashed at once."""


class FrozenWeights:
    """The parameters of a model that are not trained in this run.

    Args:
        tensors: the parameters by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each parameter, independent of the precision that it is loaded with; computed once."""
        with ThreadPoolExecutor(HASH_THREADS, "hash-weights") as pool:
            return dict(zip(self.tensors, pool.map(hash_tensor, self.tensors.values()), strict=True))


@torch.no_grad()
def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of the shape and the values. Values of 16 bits are hashed as FP32, which represents them exactly."""
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    content = tensor.detach().to("cpu", torch.float32 if is_half else tensor.dtype).contiguous()
    digest = hashlib.sha256(f"{content.dtype} {tuple(content.shape)} ".encode())
    digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def get_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. A tied weight occurs once."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def set_model_state_dict(model: nn.Module, weights: Mapping[str, Tensor], frozen: Mapping[str, str]) -> None:
    """Copy the weights of a checkpoint into the model.

    Args:
        model: the model, with the weights of the pretrained model.
        weights: the weights that the checkpoint has.
        frozen: hashes of the other parameters.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    check_names(tensors, weights, frozen)
    widen_weights(model, weights)
    for name, tensor in weights.items():
        tensors[name].copy_(tensor)


def check_frozen(expected: Mapping[str, str], parameters: Mapping[str, Tensor]) -> None:
    """Check that parameters that a checkpoint does not store have the same values as when it was written.

    Args:
        expected: their hashes.
        parameters: the parameters of the pretrained model, by name.

    Raises:
        UserError: they have other values.
    """
    actual = FrozenWeights({name: parameters[name] for name in expected if name in parameters}).hashes
    if different := [name for name, found in actual.items() if found != expected[name]]:
        raise UserError(
            f"model.source: the weights of the model have changed since the checkpoint was written: {len(different)} "
            f"of {len(expected)} frozen parameters differ, e.g. {different[0]} ({expected[different[0]][:12]} -> "
            f"{actual[different[0]][:12]}); restore the model, or start over with --fresh"
        )


def check_names(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], frozen: Mapping[str, str]) -> None:
    """Check that a checkpoint has the names and shapes of a model.

    Raises:
        UserError: it does not.
    """
    different = sorted(tensors.keys() ^ (weights.keys() | frozen.keys()))
    different += [name for name, tensor in weights.items() if name in tensors and tensor.shape != tensors[name].shape]
    if different:
        raise UserError(
            f"model.source: the checkpoint belongs to another model: {len(different)} tensors have another name or "
            f"shape, e.g. {different[0]}; restore the model, or start over with --fresh"
        )
