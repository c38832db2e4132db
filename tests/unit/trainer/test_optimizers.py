"""Modules of one type share an optimizer, and train exactly as plain torch would train them."""

from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.modules import Module
from finetune_api.optimizers import SGD, Adam, AdamW, RMSprop
from finetune_trainer.events import ModulePlan, Window
from finetune_trainer.optimizers import KINDS, build, forget, set_learning_rates, torch_arguments


def plan(name: str, model: nn.Module, prefix: str, optimizer: dict[str, Any], **fields: Any) -> ModulePlan:
    spec = Module.model_validate({"name": name, "parameters": ["*"], "optimizer": optimizer, **fields})
    names = tuple(each for each, _ in model.named_parameters() if each.startswith(prefix))
    return ModulePlan(spec, names, 0, Window(0, 100), None)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        loss = model(torch.randn(4, 6)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def decayed_and_not(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [it for it in parameters if it.ndim > 1], "weight_decay": decay},
        {"params": [it for it in parameters if it.ndim <= 1], "weight_decay": 0.0},
    ]


PLAIN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SGD": (
        {"learningRate": 0.1, "momentum": 0.9, "nesterov": True},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "fused": True},
    ),
    "Adam": (
        {"learningRate": 0.01, "beta1": 0.8, "epsilon": 1e-6},
        {"lr": 0.01, "betas": (0.8, 0.999), "eps": 1e-6, "fused": True},
    ),
    "AdamW": (
        {"learningRate": 0.01, "beta2": 0.99},
        {"lr": 0.01, "betas": (0.9, 0.99), "fused": True},
    ),
    "RMSprop": (
        {"learningRate": 0.01, "alpha": 0.9, "centered": True},
        {"lr": 0.01, "alpha": 0.9, "centered": True, "foreach": True},
    ),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_one_module_trains_as_plain_torch_does(kind: str) -> None:
    ours, theirs = PLAIN[kind]
    model = network()
    built = build([plan("all", model, "", {"type": kind, "weightDecay": 0.1, **ours})], dict(model.named_parameters()))
    assert len(built) == 1
    plain = network()
    reference = getattr(torch.optim, kind)(decayed_and_not(list(plain.parameters()), 0.1), **theirs)
    for mine, other in zip(train(model, built), train(plain, [reference]), strict=True):
        assert torch.equal(mine, other)


def test_two_types_train_as_two_torch_optimizers() -> None:
    model, plain = network(), network()
    plans = [
        plan("first", model, "0.", {"type": "SGD", "learningRate": 0.05, "momentum": 0.9}),
        plan("second", model, "2.", {"type": "AdamW", "learningRate": 0.01, "weightDecay": 0.1}),
    ]
    built = build(plans, dict(model.named_parameters()))
    reference = [
        torch.optim.SGD(plain[0].parameters(), lr=0.05, momentum=0.9, fused=True),
        torch.optim.AdamW(decayed_and_not(list(plain[2].parameters()), 0.1), lr=0.01, fused=True),
    ]
    for mine, other in zip(train(model, built), train(plain, reference), strict=True):
        assert torch.equal(mine, other)


def test_modules_of_one_type_share_an_instance_and_keep_their_own_settings() -> None:
    model = network()
    plans = [
        plan("first", model, "0.", {"type": "AdamW", "learningRate": 0.1}),
        plan("second", model, "2.", {"type": "AdamW", "learningRate": 0.2, "weightDecay": 0.5}),
    ]
    (optimizer,) = build(plans, dict(model.named_parameters()))
    settings = [(group["module"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [("first", 0.1, 0.01), ("first", 0.1, 0.0), ("second", 0.2, 0.5), ("second", 0.2, 0.0)]
    set_learning_rates([optimizer], {"first": 1.0, "second": 2.0})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 2.0, 2.0]


def test_nothing_is_left_out_of_decay_when_the_manifest_says_so() -> None:
    model = network()
    spec = plan("all", model, "", {"type": "AdamW", "learningRate": 0.1}, decayExclude="Nothing")
    (optimizer,) = build([spec], dict(model.named_parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


def test_state_can_be_forgotten() -> None:
    model = network()
    (optimizer,) = build(
        [plan("all", model, "", {"type": "AdamW", "learningRate": 0.1})], dict(model.named_parameters())
    )
    train(model, [optimizer], steps=1)
    forget([optimizer], list(model[0].parameters()))
    assert set(optimizer.state) == set(model[2].parameters())


def test_every_optimizer_of_the_language_is_built_with_all_its_fields() -> None:
    assert set(KINDS) == {SGD, Adam, AdamW, RMSprop}
    for kind, built in KINDS.items():
        arguments = torch_arguments(kind.model_validate({"type": kind.__name__, "learningRate": 0.1}))
        built.torch_class([nn.Parameter(torch.zeros(2, 2))], **arguments, **built.implementation)
