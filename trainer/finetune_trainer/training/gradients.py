"""What happens to gradients between the backward pass and the optimizer step: unscaling, regularization, clipping.

Nothing here synchronizes with the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from finetune_trainer.training.assembly import TrainableModule
from finetune_trainer.training.optimizers import has_weight_decay


def unscale_grads(modules: Sequence[TrainableModule], scale: float) -> None:
    """Divide all gradients by the loss scale, in place. The scale is a power of two, so this is exact."""
    grads = [grad for module in modules for grad in module.grads]
    if scale != 1.0 and grads:
        torch._foreach_mul_(grads, 1.0 / scale)


def add_regularization(modules: Sequence[TrainableModule]) -> None:
    """Add the gradients of the L1 and L2 penalties, in place: grad += l1 * sign(w) + l2 * w."""
    for module in modules:
        penalty = module.plan.spec.regularization
        parameters = [p for p in module.parameters if p.grad is not None and has_weight_decay(module.plan, p)]
        if penalty is None or not parameters:
            continue
        weights = [parameter.detach() for parameter in parameters]
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if penalty.l1:
            torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=penalty.l1)
        if penalty.l2:
            torch._foreach_add_(grads, weights, alpha=penalty.l2)


def get_grad_norms(modules: Sequence[TrainableModule], device: torch.device) -> Tensor:
    """The L2 norm of the gradients of each module, of shape (modules,); 0 for a module without gradients.

    All modules are one foreach call, with the result of `torch.nn.utils.get_total_norm` for each: calling that once per
    module takes longer than the pass over the gradients when there are many modules.
    """
    grads = [module.grads for module in modules]
    if not any(grads):
        return torch.zeros(len(modules), device=device)
    norms = torch.stack(torch._foreach_norm([grad for module_grads in grads for grad in module_grads])).to(device)
    parts = torch.split(norms, [len(module_grads) for module_grads in grads])
    return torch.stack([torch.linalg.vector_norm(part) for part in parts])


@torch.no_grad()
def clip_grads(modules: Sequence[TrainableModule], norms: Tensor, max_norm: float | None) -> None:
    """Clip the gradients of each module to its own `clipGradNorm`, then those of all modules together, in place.

    The formula is that of `torch.nn.utils.clip_grads_with_norm_`: grad * min(limit / (norm + 1e-6), 1).

    Args:
        modules: the modules.
        norms: their gradient norms, of shape (modules,).
        max_norm: `training.clipGradNorm`; None for no limit.
    """
    limits = [module.plan.spec.clip_grad_norm for module in modules]
    if any(limit is not None for limit in limits):
        factors = _clip_factors(norms, _as_tensor(tuple(math.inf if it is None else it for it in limits), norms.device))
        for module, limit, factor in zip(modules, limits, factors.unbind(), strict=True):
            if limit is not None and (grads := module.grads):
                torch._foreach_mul_(grads, factor)
        norms = norms * factors
    if max_norm is not None and (grads := [grad for module in modules for grad in module.grads]):
        torch._foreach_mul_(grads, _clip_factors(torch.linalg.vector_norm(norms), max_norm))


def _clip_factors(norms: Tensor, limits: Tensor | float) -> Tensor:
    return torch.clamp(limits / (norms + 1e-6), max=1.0)


@lru_cache(maxsize=32)
def _as_tensor(limits: tuple[float, ...], device: torch.device) -> Tensor:
    """The limits on the device; copied there once, because each copy would wait for the device."""
    return torch.tensor(limits, device=device)
