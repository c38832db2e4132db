"""Loss terms that a model defines besides its task's: the load balancing loss of mixture-of-experts models.

Models add them when they compute the loss themselves, from labels. Here the task computes it from the logits, so these
terms are added or refused by name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from finetune_trainer.compat.hf_transformers import router_coefficient
from finetune_trainer.errors import UserError

UNSUPPORTED_TERMS = {
    "bamba": ("z_loss_coefficient", 0.0, "a z-loss"),
    "prophetnet": ("disable_ngram_loss", True, "losses of the following n-grams"),
    "xlm-prophetnet": ("disable_ngram_loss", True, "losses of the following n-grams"),
}
"""Field of the config with which a model type has another loss term, the value that disables it, and the term."""


def check_loss_terms(config: PretrainedConfig) -> None:
    """Reject models with a loss term that tasks do not compute.

    Raises:
        UserError: the config enables one.
    """
    field, disabled, term = UNSUPPORTED_TERMS.get(config.model_type, ("", None, ""))
    value = getattr(config, field, disabled)
    if value != disabled:
        raise UserError(
            f"model.source: the model's loss has a term that is not supported, {term} ({field}: {value} in "
            f"config.json); set {field}: {disabled} there"
        )


def get_auxiliary_loss(model: nn.Module, outputs: Any) -> Tensor | None:
    """The load balancing loss of a forward pass, times its coefficient; None if the model has none.

    Models compute it with `output_router_logits: true` in their config.

    Args:
        model: the model, perhaps with wrappers.
        outputs: its outputs.
    """
    auxiliary_loss = getattr(outputs, "aux_loss", None)
    if not isinstance(auxiliary_loss, Tensor):
        return None
    return router_coefficient(model) * auxiliary_loss
