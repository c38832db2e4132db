"""What happens to gradients between the backward pass and the optimizer step: unscaling, regularization, clipping.

Nothing here synchronizes with the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

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
    """The L2 norm of the gradients of each module, of shape (modules,); 0 for a module without gradients."""
    return torch.stack([get_total_norm(module.grads).to(device) for module in modules])


def clip_grads(modules: Sequence[TrainableModule], norms: Tensor, max_norm: float | None) -> None:
    """Clip the gradients of each module to its own `clipGradNorm`, then those of all modules together, in place.

    Args:
        modules: the modules.
        norms: their gradient norms, of shape (modules,).
        max_norm: `training.clipGradNorm`; None for no limit.
    """
    limits = [module.plan.spec.clip_grad_norm for module in modules]
    for module, norm, limit in zip(modules, norms, limits, strict=True):
        if limit is not None:
            clip_grads_with_norm_(module.parameters, limit, norm)
    if max_norm is not None:
        parameters = [parameter for module in modules for parameter in module.parameters]
        clip_grads_with_norm_(parameters, max_norm, torch.linalg.vector_norm(_clipped_norms(norms, limits)))


def _clipped_norms(norms: Tensor, limits: Sequence[float | None]) -> Tensor:
    """The norms after each module was clipped, of shape (modules,), without another pass over the gradients."""
    pairs = zip(norms, limits, strict=True)
    return torch.stack(
        [norm if limit is None else norm * torch.clamp(limit / (norm + 1e-6), max=1.0) for norm, limit in pairs]
    )
