"""Regularization by its formula; norms and clipping equal torch's."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.modules import Module
from finetune_trainer.plan import ModulePlan, Window
from finetune_trainer.training.assembly import TrainableModule
from finetune_trainer.training.gradients import add_regularization, clip_grads, get_grad_norms, unscale_grads

CPU = torch.device("cpu")
OPTIMIZER = {"type": "SGD", "learningRate": 0.1}


def make_module(seed: int = 0, scale: float = 1.0, **fields: Any) -> TrainableModule:
    """A matrix and a vector, with gradients."""
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * scale
    spec = Module.model_validate({"name": f"m{seed}", "parameters": ["*"], "optimizer": OPTIMIZER, **fields})
    return TrainableModule(ModulePlan(spec, (), 0, Window(0, 1), None), parameters)


def norms_by_torch(modules: list[TrainableModule]) -> torch.Tensor:
    """The norm of each module from a call of torch of its own."""
    return torch.stack([nn.utils.get_total_norm(module.grads) for module in modules])


def test_regularization_follows_its_formula_and_excludes_biases() -> None:
    module = make_module(regularization={"l1": 0.1, "l2": 0.01})
    matrix, vector = module.parameters
    assert matrix.grad is not None and vector.grad is not None
    expected = matrix.grad + 0.1 * matrix.detach().sign() + 0.01 * matrix.detach()
    vector_grad = vector.grad.clone()
    add_regularization([module])
    torch.testing.assert_close(matrix.grad, expected)
    assert torch.equal(vector.grad, vector_grad)


def test_regularization_includes_biases_when_nothing_is_excluded() -> None:
    module = make_module(regularization={"l2": 0.5}, decayExclude="Nothing")
    before = [grad.clone() for grad in module.grads]
    add_regularization([module])
    for parameter, grad in zip(module.parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, grad + 0.5 * parameter.detach())


def test_grad_norms_equal_the_formula() -> None:
    modules = [make_module(0), make_module(1, scale=100), make_module(2)]
    for norm, module in zip(get_grad_norms(modules, CPU), modules, strict=True):
        torch.testing.assert_close(norm, torch.cat([grad.flatten() for grad in module.grads]).norm())


@pytest.mark.parametrize("seed", range(20))
def test_grad_norms_are_bit_equal_to_those_of_torch(seed: int) -> None:
    modules = [make_module(seed), make_module(seed + 1, scale=1e3), make_module(seed + 2, scale=1e-3)]
    assert torch.equal(get_grad_norms(modules, CPU), norms_by_torch(modules))


@pytest.mark.parametrize("limit", [0.5, 0.3, 1e6])
def test_clipping_a_module_equals_torch_and_keeps_the_others(limit: float) -> None:
    ours, reference = [make_module(0, clipGradNorm=limit), make_module(1)], [make_module(0), make_module(1)]
    nn.utils.clip_grad_norm_(reference[0].parameters, limit)
    clip_grads(ours, get_grad_norms(ours, CPU), None)
    for module, other in zip(ours, reference, strict=True):
        for grad, expected in zip(module.grads, other.grads, strict=True):
            assert torch.equal(grad, expected)


@pytest.mark.parametrize("limit", [0.5, 0.3, 1e6])
def test_global_clipping_follows_that_of_the_modules(limit: float) -> None:
    ours, reference = [make_module(0, clipGradNorm=1.0), make_module(1, 3.0)], [make_module(0), make_module(1, 3.0)]
    nn.utils.clip_grad_norm_(reference[0].parameters, 1.0)
    nn.utils.clip_grad_norm_([*reference[0].parameters, *reference[1].parameters], limit)
    clip_grads(ours, get_grad_norms(ours, CPU), limit)
    for module, other in zip(ours, reference, strict=True):
        for grad, expected in zip(module.grads, other.grads, strict=True):
            torch.testing.assert_close(grad, expected)


def test_module_without_gradients_among_others() -> None:
    modules = [make_module(0, clipGradNorm=0.5), make_module(1, clipGradNorm=0.5), make_module(2)]
    for parameter in modules[0].parameters:
        parameter.grad = None
    norms = get_grad_norms(modules, CPU)
    assert norms[0] == 0
    clip_grads(modules, norms, 1.0)
    assert get_grad_norms(modules, CPU)[1] < 0.51


def test_parameters_without_gradients_are_ignored() -> None:
    module = make_module(regularization={"l1": 1.0}, clipGradNorm=1.0)
    for parameter in module.parameters:
        parameter.grad = None
    add_regularization([module])
    clip_grads([module], get_grad_norms([module, make_module(1)], CPU)[:1], 1.0)
    assert get_grad_norms([module], CPU).tolist() == [0.0]
    assert not module.grads


def test_unscaling_by_a_power_of_two_is_exact() -> None:
    module = make_module()
    before = [grad.clone() for grad in module.grads]
    for grad in module.grads:
        grad.mul_(2.0**16)
    unscale_grads([module], 2.0**16)
    assert all(torch.equal(grad, expected) for grad, expected in zip(module.grads, before, strict=True))
