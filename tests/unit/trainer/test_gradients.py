"""Penalties by their formula; norms and clipping as torch's own."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.modules import Module
from finetune_trainer.plan import ModulePlan, Window
from finetune_trainer.training.gradients import Part, clip, norms, penalize, unscale

OPTIMIZER = {"type": "SGD", "learningRate": 0.1}


def part(seed: int = 0, scale: float = 1.0, **fields: Any) -> Part:
    """A matrix and a vector, with gradients."""
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * scale
    spec = Module.model_validate({"name": f"m{seed}", "parameters": ["*"], "optimizer": OPTIMIZER, **fields})
    return Part(ModulePlan(spec, (), 0, Window(0, 1), None), parameters)


def test_penalties_follow_their_formula_and_leave_biases_alone() -> None:
    one = part(regularization={"l1": 0.1, "l2": 0.01})
    matrix, vector = one.parameters
    assert matrix.grad is not None and vector.grad is not None
    expected = matrix.grad + 0.1 * matrix.detach().sign() + 0.01 * matrix.detach()
    untouched = vector.grad.clone()
    penalize([one])
    torch.testing.assert_close(matrix.grad, expected)
    assert torch.equal(vector.grad, untouched)


def test_penalties_reach_biases_when_nothing_is_excluded() -> None:
    one = part(regularization={"l2": 0.5}, decayExclude="Nothing")
    before = [gradient.clone() for gradient in one.gradients]
    penalize([one])
    for parameter, gradient in zip(one.parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 0.5 * parameter.detach())


def test_norms_are_torchs() -> None:
    parts = [part(0), part(1, scale=100), part(2)]
    for measured, one in zip(norms(parts), parts, strict=True):
        torch.testing.assert_close(measured, nn.utils.get_total_norm(one.gradients))


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_one_module_is_torchs_and_leaves_the_others(limit: float) -> None:
    ours, reference = [part(0, clipGradNorm=limit), part(1)], [part(0), part(1)]
    nn.utils.clip_grad_norm_(reference[0].parameters, limit)
    clip(ours, norms(ours), None)
    for one, other in zip(ours, reference, strict=True):
        for mine, theirs in zip(one.gradients, other.gradients, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_the_global_clip_comes_after_the_modules_own(limit: float) -> None:
    ours, reference = [part(0, clipGradNorm=1.0), part(1, 3.0)], [part(0), part(1, 3.0)]
    nn.utils.clip_grad_norm_(reference[0].parameters, 1.0)
    nn.utils.clip_grad_norm_([*reference[0].parameters, *reference[1].parameters], limit)
    clip(ours, norms(ours), limit)
    for one, other in zip(ours, reference, strict=True):
        for mine, theirs in zip(one.gradients, other.gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_parameter_without_a_gradient_is_passed_over() -> None:
    one = part(regularization={"l1": 1.0}, clipGradNorm=1.0)
    for parameter in one.parameters:
        parameter.grad = None
    penalize([one])
    clip([one], norms([one, part(1)])[:1], 1.0)
    assert norms([one]).tolist() == [0.0]
    assert not one.gradients


def test_unscaling_by_a_power_of_two_loses_nothing() -> None:
    one = part()
    before = [gradient.clone() for gradient in one.gradients]
    for gradient in one.gradients:
        gradient.mul_(2.0**16)
    unscale([one], 2.0**16)
    assert all(torch.equal(mine, other) for mine, other in zip(one.gradients, before, strict=True))
