"""Modules with the same optimizer type share an optimizer, and train exactly as with plain torch."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from finetune_api.modules import Module
from finetune_api.optimizers import Optimizer
from finetune_trainer.plan import ModulePlan, Window
from finetune_trainer.training.optimizers import (
    IMPLEMENTATIONS,
    build_optimizers,
    clear_state,
    get_optimizer_state_dict,
    set_learning_rates,
    set_optimizer_state_dict,
    state_layouts,
    torch_arguments,
)


def plan(name: str, model: nn.Module, prefix: str, optimizer: dict[str, Any], **fields: Any) -> ModulePlan:
    spec = Module.model_validate({"name": name, "parameters": ["*"], "optimizer": optimizer, **fields})
    names = tuple(each for each, _ in model.named_parameters() if each.startswith(prefix))
    return ModulePlan(spec, names, 0, Window(0, 100), None)


def network(kind: str = "") -> nn.Sequential:
    """Two linear layers; without biases for Muon, which accepts matrices only."""
    torch.manual_seed(0)
    bias = kind != "Muon"
    return nn.Sequential(nn.Linear(6, 5, bias), nn.Tanh(), nn.Linear(5, 3, bias))


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(steps):
        loss = model(torch.randn(4, 6)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def decay_groups(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"params": [it for it in parameters if it.ndim > 1], "weight_decay": decay},
        {"params": [it for it in parameters if it.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
    "Adagrad": (
        {"learningRate": 0.1, "initialAccumulatorValue": 0.5, "epsilon": 1e-8},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-8, "fused": True},
    ),
    "Adafactor": (
        {"learningRate": 0.3, "beta2Decay": -0.7, "d": 2.0},
        {"lr": 0.3, "beta2_decay": -0.7, "d": 2.0},
    ),
    "NAdam": (
        {"learningRate": 0.01, "beta1": 0.8, "momentumDecay": 0.01, "decoupledWeightDecay": True},
        {"lr": 0.01, "betas": (0.8, 0.999), "momentum_decay": 0.01, "decoupled_weight_decay": True, "foreach": True},
    ),
    "RAdam": (
        {"learningRate": 0.01, "beta2": 0.9, "decoupledWeightDecay": True},
        {"lr": 0.01, "betas": (0.9, 0.9), "decoupled_weight_decay": True, "foreach": True},
    ),
    "Muon": (
        {"learningRate": 0.05, "momentum": 0.9, "nesterov": False, "nsSteps": 4, "adjustLrFn": "match_rms_adamw"},
        {"lr": 0.05, "momentum": 0.9, "nesterov": False, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"},
    ),
}
MODELS = {kind.__name__: kind for kind in get_args(get_args(Optimizer)[0])}


@pytest.mark.parametrize("kind", PLAIN)
def test_one_module_trains_as_with_plain_torch(kind: str) -> None:
    ours, theirs = PLAIN[kind]
    model, plain = network(kind), network(kind)
    built = build_optimizers(
        [plan("all", model, "", {"type": kind, "weightDecay": 0.1, **ours})], dict(model.named_parameters())
    )
    assert len(built) == 1
    reference = getattr(torch.optim, kind)(decay_groups(list(plain.parameters()), 0.1), **theirs)
    for mine, other in zip(train(model, built), train(plain, [reference]), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", PLAIN)
def test_defaults_equal_torch(kind: str) -> None:
    torchs = inspect.signature(getattr(torch.optim, kind)).parameters
    ours = torch_arguments(MODELS[kind].model_validate({"type": kind, "learningRate": 0.1}))
    del ours["lr"]
    assert ours == {name: torchs[name].default for name in ours}


@pytest.mark.parametrize("kind", PLAIN)
def test_torch_accepts_every_valid_spec(kind: str) -> None:
    """Each field at both of its bounds, one at a time; a step must be possible."""
    for fields in boundary_specs(MODELS[kind]):
        model = network(kind)
        spec = {"type": kind, "learningRate": 0.1, **fields}
        train(model, build_optimizers([plan("all", model, "", spec)], dict(model.named_parameters())), steps=2)


def boundary_specs(kind: type[Any]) -> Iterator[dict[str, Any]]:
    for name, field in kind.model_fields.items():
        alias = field.alias or name
        for value in [*boundary_values(field.metadata), *choices(field.annotation)]:
            if name != "type" and not (name == "nesterov" and kind.__name__ == "SGD"):
                yield {alias: value}
    if kind.__name__ == "SGD":
        yield {"nesterov": True, "momentum": 0.5}


def boundary_values(bounds: list[Any]) -> Iterator[float]:
    for bound in bounds:
        match bound:
            case Ge(ge=end) | Le(le=end):
                yield end
            case Gt(gt=end):
                yield end + 1e-12
            case Lt(lt=end):
                yield end - 1e-12


def choices(annotation: Any) -> Iterator[Any]:
    if annotation is bool:
        yield from (False, True)
    for option in get_args(annotation):
        yield from [option] if isinstance(option, str) else choices(option)


@pytest.mark.parametrize("kind", PLAIN)
def test_restored_state_continues_training_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model, resumed = network(kind), network(kind)
    spec = {"type": kind, "weightDecay": 0.1, **PLAIN[kind][0]}
    optimizers = build_two_modules(model, spec)
    train(model, optimizers, steps=3)
    save_file(get_optimizer_state_dict(optimizers, model), tmp_path / "state.safetensors")
    resumed.load_state_dict(model.state_dict())
    again = build_two_modules(resumed, spec)
    set_optimizer_state_dict(again, resumed, load_file(tmp_path / "state.safetensors"))
    for mine, other in zip(train(model, optimizers), train(resumed, again), strict=True):
        assert torch.equal(mine, other)


def build_two_modules(model: nn.Module, spec: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Two modules with one optimizer type, and learning rates other than those of the spec."""
    plans = [plan("first", model, "0.", spec), plan("second", model, "2.", {**spec, "learningRate": 0.02})]
    optimizers = build_optimizers(plans, dict(model.named_parameters()))
    set_learning_rates(optimizers, {"first": 0.03, "second": 0.01})
    return optimizers


@pytest.mark.parametrize("kind", PLAIN)
def test_cleared_state_equals_new_state(kind: str) -> None:
    """Adagrad creates its state in its constructor; after clear_state it must be created again."""
    model, fresh = network(kind), network(kind)
    spec = {"type": kind, **PLAIN[kind][0]}
    optimizers = build_optimizers([plan("all", model, "", spec)], dict(model.named_parameters()))
    train(model, optimizers, steps=3)
    clear_state(optimizers, list(model.parameters()))
    assert not any(optimizer.state for optimizer in optimizers)
    fresh.load_state_dict(model.state_dict())
    new = build_optimizers([plan("all", fresh, "", spec)], dict(fresh.named_parameters()))
    for mine, other in zip(train(model, optimizers), train(fresh, new), strict=True):
        assert torch.equal(mine, other)


def test_modules_keep_their_instance_fields() -> None:
    """torch.optim.Adagrad takes initial_accumulator_value from its arguments, and ignores a group's."""
    model = network()
    plans = [
        plan("first", model, "0.", {"type": "Adagrad", "learningRate": 0.1}),
        plan("second", model, "2.", {"type": "Adagrad", "learningRate": 0.1, "initialAccumulatorValue": 0.5}),
    ]
    first, second = build_optimizers(plans, dict(model.named_parameters()))
    assert {float(state["sum"].max()) for state in first.state.values()} == {0.0}
    assert {float(state["sum"].min()) for state in second.state.values()} == {0.5}


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind != "AdamW"])
def test_each_type_trains_with_another_one(kind: str) -> None:
    model, plain = network(kind), network(kind)
    ours, theirs = PLAIN[kind]
    plans = [
        plan("first", model, "0.", {"type": kind, "weightDecay": 0.0, **ours}),
        plan("second", model, "2.", {"type": "AdamW", "learningRate": 0.01}),
    ]
    reference = [
        getattr(torch.optim, kind)(plain[0].parameters(), weight_decay=0.0, **theirs),
        torch.optim.AdamW(decay_groups(list(plain[2].parameters()), 0.01), lr=0.01, fused=True),
    ]
    built = build_optimizers(plans, dict(model.named_parameters()))
    for mine, other in zip(train(model, built), train(plain, reference), strict=True):
        assert torch.equal(mine, other)


def test_two_types_train_as_two_torch_optimizers() -> None:
    model, plain = network(), network()
    plans = [
        plan("first", model, "0.", {"type": "SGD", "learningRate": 0.05, "momentum": 0.9}),
        plan("second", model, "2.", {"type": "AdamW", "learningRate": 0.01, "weightDecay": 0.1}),
    ]
    built = build_optimizers(plans, dict(model.named_parameters()))
    reference = [
        torch.optim.SGD(plain[0].parameters(), lr=0.05, momentum=0.9, fused=True),
        torch.optim.AdamW(decay_groups(list(plain[2].parameters()), 0.1), lr=0.01, fused=True),
    ]
    for mine, other in zip(train(model, built), train(plain, reference), strict=True):
        assert torch.equal(mine, other)


def test_modules_with_one_type_share_an_instance() -> None:
    model = network()
    plans = [
        plan("first", model, "0.", {"type": "AdamW", "learningRate": 0.1}),
        plan("second", model, "2.", {"type": "AdamW", "learningRate": 0.2, "weightDecay": 0.5}),
    ]
    (optimizer,) = build_optimizers(plans, dict(model.named_parameters()))
    settings = [(group["module"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [("first", 0.1, 0.01), ("first", 0.1, 0.0), ("second", 0.2, 0.5), ("second", 0.2, 0.0)]
    set_learning_rates([optimizer], {"first": 1.0, "second": 2.0})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 2.0, 2.0]


def test_decay_exclude_nothing() -> None:
    model = network()
    spec = plan("all", model, "", {"type": "AdamW", "learningRate": 0.1}, decayExclude="Nothing")
    (optimizer,) = build_optimizers([spec], dict(model.named_parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


@pytest.mark.parametrize("kind", PLAIN)
def test_layout_of_the_state_is_that_after_a_step(kind: str) -> None:
    """It decides whether a run can continue from a checkpoint, and how much space its checkpoints need."""
    model = nn.Sequential(nn.Linear(64, 64, kind != "Muon"))
    plans = [plan("all", model, "", {"type": kind, **PLAIN[kind][0]})]
    parameters = dict(model.named_parameters())
    layout = state_layouts(plans, parameters)["all"]
    optimizers = build_optimizers(plans, parameters)
    model(torch.randn(4, 64)).square().mean().backward()
    optimizers[0].step()
    state = get_optimizer_state_dict(optimizers, model)
    for name, parameter in parameters.items():
        tensors = {path.rpartition("/")[2]: it for path, it in state.items() if path.startswith(f"{name}/")}
        assert layout.is_compatible(parameter.ndim, tensors)
        assert not layout.is_compatible(parameter.ndim, {*tensors, "other"})
        assert layout.numel(parameter) == sum(tensor.numel() for tensor in tensors.values())


def test_layouts_leave_model_and_random_state_as_they_are() -> None:
    model = network()
    before, random_state = [it.clone() for it in model.parameters()], torch.get_rng_state()
    state_layouts([plan("all", model, "", {"type": "AdamW", "learningRate": 0.1})], dict(model.named_parameters()))
    assert all(map(torch.equal, before, model.parameters()))
    assert all(it.grad is None for it in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_clear_state() -> None:
    model = network()
    (optimizer,) = build_optimizers(
        [plan("all", model, "", {"type": "AdamW", "learningRate": 0.1})], dict(model.named_parameters())
    )
    train(model, [optimizer], steps=1)
    clear_state([optimizer], list(model[0].parameters()))
    assert set(optimizer.state) == set(model[2].parameters())


def test_every_optimizer_has_an_implementation_and_a_reference() -> None:
    assert set(MODELS) == set(PLAIN)
    assert set(MODELS.values()) == set(IMPLEMENTATIONS)
    assert TypeAdapter(Optimizer).validate_python({"type": "Muon", "learningRate": 1}).weight_decay == 0.1
