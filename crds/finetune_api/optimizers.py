"""The optimizers a module can have, with torch's own parameter names in camelCase and torch's defaults.

`fused` and `foreach` are chosen by the trainer. To add an optimizer: one class here, one line in the trainer's table.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Model, NonNegative, Rule

LearningRate = Annotated[float, Field(gt=0, le=100)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class _Optimizer(Model):
    learning_rate: LearningRate
    """Base rate; the schedule multiplies it by a factor."""
    weight_decay: NonNegative = 0.0
    """The optimizer's own weight decay; biases and norms are left out by default (`decayExclude`)."""


class SGD(_Optimizer):
    """Stochastic gradient descent, with momentum (torch.optim.SGD)."""

    rules = (
        Rule(
            field="nesterov",
            message="nesterov needs a momentum above 0 and no dampening",
            cel="!has(self.nesterov) || !self.nesterov || "
            "(has(self.momentum) && self.momentum > 0.0 && (!has(self.dampening) || self.dampening == 0.0))",
            holds=lambda it: not it.nesterov or (it.momentum > 0 and it.dampening == 0),
        ),
    )

    type: Literal["SGD"]
    momentum: Momentum = 0.0
    """Momentum, in [0, 1)."""
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Dampening of the momentum."""
    nesterov: bool = False
    """Nesterov momentum."""


class Adam(_Optimizer):
    """Adam with L2-style weight decay (torch.optim.Adam, arXiv 1412.6980)."""

    type: Literal["Adam"]
    beta1: Momentum = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: Momentum = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Keep the maximum of the second moment."""


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (torch.optim.AdamW, arXiv 1711.05101)."""

    type: Literal["AdamW"]
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay; biases and norms are left out by default (`decayExclude`)."""
    beta1: Momentum = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: Momentum = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Keep the maximum of the second moment."""


class RMSprop(_Optimizer):
    """RMSprop (torch.optim.RMSprop)."""

    type: Literal["RMSprop"]
    alpha: Momentum = 0.99
    """Smoothing of the squared gradient, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    momentum: Momentum = 0.0
    """Momentum, in [0, 1)."""
    centered: bool = False
    """Normalize by the estimated variance of the gradient."""


Optimizer = Annotated[SGD | Adam | AdamW | RMSprop, Field(discriminator="type")]
