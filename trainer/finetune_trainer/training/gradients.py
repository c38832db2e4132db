"""What happens to gradients between the backward pass and the optimizers: penalties, norms, clipping.

All modules in one foreach pass, and nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.plan import ModulePlan
from finetune_trainer.training.optimizers import decays


@dataclass(frozen=True)
class Part:
    """One trainable module, as far as its gradients are concerned.

    Args:
        plan: the module's plan.
        parameters: all its parameters.
    """

    plan: ModulePlan
    parameters: Sequence[torch.nn.Parameter]

    @property
    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


def unscale(parts: Sequence[Part], scale: float) -> None:
    """Divide all gradients by the loss scale; dividing by a power of two loses nothing."""
    gradients = [gradient for part in parts for gradient in part.gradients]
    if scale != 1.0 and gradients:
        torch._foreach_mul_(gradients, 1.0 / scale)


def penalize(parts: Sequence[Part]) -> None:
    """Add the gradients of the L1 and L2 penalties: grad += l1·sign(w) + l2·w."""
    for part in parts:
        penalty = part.plan.spec.regularization
        reached = [p for p in part.parameters if p.grad is not None and decays(part.plan, p)]
        if penalty is None or not reached:
            continue
        weights = [parameter.detach() for parameter in reached]
        gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
        if penalty.l1:
            torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=penalty.l1)
        if penalty.l2:
            torch._foreach_add_(gradients, weights, alpha=penalty.l2)


def norms(parts: Sequence[Part]) -> Tensor:
    """The gradient norm of every part, in one pass over all of them."""
    counts = [len(part.gradients) for part in parts]
    gradients = [gradient for part in parts for gradient in part.gradients]
    if not gradients:
        return torch.zeros(len(parts))
    each = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    return torch.stack([torch.linalg.vector_norm(of_part) for of_part in torch.split(each, counts)])


def clip(parts: Sequence[Part], measured: Tensor, limit: float | None) -> None:
    """Scale every part down to its own limit, then all of them to the common one."""
    if limit is None and all(part.plan.spec.clip_grad_norm is None for part in parts):
        return
    limits = [part.plan.spec.clip_grad_norm or float("inf") for part in parts]
    factors = _factor(measured, torch.tensor(limits, device=measured.device))
    if limit is not None:
        factors = factors * _factor(torch.linalg.vector_norm(measured * factors), torch.tensor(limit))
    for part, factor in zip(parts, factors, strict=True):
        if part.gradients and (limit is not None or part.plan.spec.clip_grad_norm is not None):
            torch._foreach_mul_(part.gradients, factor)


def _factor(norm: Tensor, limit: Tensor) -> Tensor:
    """What torch.nn.utils.clip_grad_norm_ multiplies by."""
    return torch.clamp(limit / (norm + 1e-6), max=1.0)
