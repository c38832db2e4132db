"""Loss terms that a model defines besides its task's are added as the model adds them, or refused."""

import pytest
import torch
from torch import nn
from transformers import (
    BambaConfig,
    JetMoeConfig,
    JetMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    ProphetNetConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from finetune_trainer.errors import UserError
from finetune_trainer.tasks.auxiliary_loss import check_loss_terms
from finetune_trainer.tasks.causal_lm import CausalLM
from unit.trainer import tiny

COMMON = {**tiny.SMALL, "vocab_size": 40, "max_position_embeddings": 32, "output_router_logits": True}
EXPERTS = {"num_key_value_heads": 2, "router_aux_loss_coef": 0.5, "num_experts_per_tok": 2}


def mixtral(**changes: object) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**{**COMMON, **EXPERTS, "num_local_experts": 4, **changes}))


def qwen3_moe() -> PreTrainedModel:
    config = Qwen3MoeConfig(**COMMON, **EXPERTS, num_experts=4, moe_intermediate_size=8, head_dim=8)
    return Qwen3MoeForCausalLM(config)


def olmoe() -> PreTrainedModel:
    return OlmoeForCausalLM(OlmoeConfig(**COMMON, **EXPERTS, num_experts=4))


def jetmoe() -> PreTrainedModel:
    fields = {"kv_channels": 8, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    return JetMoeForCausalLM(JetMoeConfig(**{**COMMON, **fields, "aux_loss_coef": 0.5}))


def batch(rows: int = 3, tokens: int = 8) -> dict[str, torch.Tensor]:
    """Texts of different lengths, all of whose tokens but the first are targets."""
    torch.manual_seed(1)
    input_ids = torch.randint(5, 40, (rows, tokens))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, 5:] = 0
    covered = attention_mask.bool().clone()
    covered[:, 0] = False
    positions = covered.flatten().nonzero().flatten() - 1
    targets = input_ids.flatten()[positions + 1]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "positions": positions, "targets": targets}


def own_loss(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss that the model computes from labels."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss: torch.Tensor = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels
    ).loss
    return loss


@pytest.mark.parametrize("make", [mixtral, qwen3_moe, olmoe, jetmoe])
def test_load_balancing_loss_is_added_as_the_model_adds_it(make: object) -> None:
    torch.manual_seed(0)
    model, inputs, task = make(), batch(), CausalLM(("text",))  # type: ignore[operator]
    loss = task.loss(model, inputs) / task.num_items(inputs)
    expected = own_loss(model, inputs)
    model.config.output_router_logits = False
    without = task.loss(model, inputs) / task.num_items(inputs)
    torch.testing.assert_close(loss, expected)
    assert float(loss.detach()) > float(without.detach()) + 0.1


def test_router_has_the_gradient_of_the_load_balancing_loss() -> None:
    torch.manual_seed(0)
    model, inputs, task = mixtral(), batch(), CausalLM(("text",))
    gate = model.get_parameter("model.layers.0.mlp.gate.weight")
    (expected,) = torch.autograd.grad(own_loss(model, inputs), gate)
    (actual,) = torch.autograd.grad(task.loss(model, inputs) / task.num_items(inputs), gate)
    torch.testing.assert_close(actual, expected)


def test_coefficient_is_found_through_wrappers() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: torch.Tensor) -> object:
            return self.module(**inputs)

    torch.manual_seed(0)
    model, inputs, task = mixtral(), batch(), CausalLM(("text",))
    torch.testing.assert_close(task.loss(Wrapper(model), inputs), task.loss(model, inputs))


def test_evaluation_has_no_load_balancing_loss() -> None:
    torch.manual_seed(0)
    model, inputs, task = mixtral(), batch(), CausalLM(("text",))
    losses = task.predict(model, inputs)["loss"]
    model.config.output_router_logits = False
    torch.testing.assert_close(losses.sum(), task.loss(model, inputs))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (BambaConfig(z_loss_coefficient=1e-4), "z_loss_coefficient: 0.0"),
        (ProphetNetConfig(disable_ngram_loss=False), "disable_ngram_loss: True"),
    ],
)
def test_other_loss_terms_are_refused_with_the_field_to_change(config: object, field: str) -> None:
    with pytest.raises(UserError, match=f"set {field} there"):
        check_loss_terms(config)  # type: ignore[arg-type]


def test_models_without_other_loss_terms_are_accepted() -> None:
    check_loss_terms(BambaConfig())
    check_loss_terms(ProphetNetConfig(disable_ngram_loss=True))
