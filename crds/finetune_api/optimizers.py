"""The optimizers a module can have, with torch's own parameter names in camelCase and torch's defaults.

`fused` and `foreach` are chosen by the trainer. To add an optimizer: one class here, one line in the trainer's table.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import HalfOpenUnitInterval, Model, NonNegativeFloat, Rule, UnitInterval

LearningRate = Annotated[float, Field(gt=0, le=100)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class BaseOptimizer(Model):
    """Fields of every optimizer."""

    learning_rate: LearningRate
    """Base rate; the schedule multiplies it by a factor."""
    weight_decay: NonNegativeFloat = 0.0
    """The optimizer's own weight decay; biases and norms are left out by default (`decayExclude`)."""


class SGD(BaseOptimizer):
    """Stochastic gradient descent, with momentum (torch.optim.SGD)."""

    rules = (
        Rule(
            field="nesterov",
            message="nesterov requires momentum greater than 0 and dampening 0",
            cel="!has(self.nesterov) || !self.nesterov || "
            "(has(self.momentum) && self.momentum > 0.0 && (!has(self.dampening) || self.dampening == 0.0))",
            is_valid=lambda sgd: not sgd.nesterov or (sgd.momentum > 0 and sgd.dampening == 0),
        ),
    )

    type: Literal["SGD"]
    momentum: HalfOpenUnitInterval = 0.0
    """Momentum, in [0, 1)."""
    dampening: UnitInterval = 0.0
    """Dampening of the momentum."""
    nesterov: bool = False
    """Nesterov momentum."""


class Adam(BaseOptimizer):
    """Adam with L2-style weight decay (torch.optim.Adam, arXiv 1412.6980)."""

    type: Literal["Adam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: HalfOpenUnitInterval = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Keep the maximum of the second moment."""


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (torch.optim.AdamW, arXiv 1711.05101)."""

    type: Literal["AdamW"]
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay; biases and norms are left out by default (`decayExclude`)."""
    beta1: HalfOpenUnitInterval = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: HalfOpenUnitInterval = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Keep the maximum of the second moment."""


class RMSprop(BaseOptimizer):
    """RMSprop (torch.optim.RMSprop)."""

    type: Literal["RMSprop"]
    alpha: HalfOpenUnitInterval = 0.99
    """Smoothing of the squared gradient, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    momentum: HalfOpenUnitInterval = 0.0
    """Momentum, in [0, 1)."""
    centered: bool = False
    """Normalize by the estimated variance of the gradient."""


class Adagrad(BaseOptimizer):
    """Adagrad (torch.optim.Adagrad, JMLR 12, 2011); its `lr_decay` is a schedule's affair."""

    type: Literal["Adagrad"]
    initial_accumulator_value: NonNegativeFloat = 0.0
    """Where the sums of squared gradients start."""
    epsilon: Epsilon = 1e-10
    """Added to the denominator."""


class Adafactor(BaseOptimizer):
    """Adafactor: the second moment as row and column means, and no first (torch.optim.Adafactor, arXiv 1804.04235).

    As in torch, a step is the smaller of the rate and 1/√t, times the root mean square of the parameter (at least
    0.001), t counted from the thaw: a rate above 1/√t has no effect, and rates of AdamW are too small. Weight decay
    is decoupled, and follows the rate alone.
    """

    type: Literal["Adafactor"]
    beta2_decay: Annotated[float, Field(ge=-1, le=0, alias="beta2Decay")] = -0.8
    """Decay of the second moment at step t is 1 - t^beta2Decay, t counted from 1."""
    d: Annotated[float, Field(ge=1, le=1_000_000)] = 1.0
    """Clipping threshold: the root mean square of an update is brought down to it."""


class NAdam(BaseOptimizer):
    """Adam with Nesterov momentum (torch.optim.NAdam)."""

    type: Literal["NAdam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: HalfOpenUnitInterval = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    momentum_decay: NonNegativeFloat = 0.004
    """Decay of the momentum."""
    decoupled_weight_decay: bool = False
    """Weight decay as in AdamW."""


class RAdam(BaseOptimizer):
    """Rectified Adam (torch.optim.RAdam, arXiv 1908.03265)."""

    type: Literal["RAdam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Decay of the first moment, in [0, 1)."""
    beta2: HalfOpenUnitInterval = 0.999
    """Decay of the second moment, in [0, 1)."""
    epsilon: Epsilon = 1e-8
    """Added to the denominator."""
    decoupled_weight_decay: bool = False
    """Weight decay as in AdamW."""


class Muon(BaseOptimizer):
    """Momentum, made orthogonal by Newton-Schulz steps (torch.optim.Muon); for matrices only.

    Biases and norms go to a module with another optimizer, and so should embeddings and the head: they are matrices,
    but tables of vectors rather than maps, for which its authors use AdamW.
    """

    type: Literal["Muon"]
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    momentum: HalfOpenUnitInterval = 0.95
    """Momentum, in [0, 1)."""
    nesterov: bool = True
    """Nesterov momentum."""
    epsilon: Epsilon = 1e-7
    """Added to the denominator."""
    ns_steps: Annotated[int, Field(ge=1, le=99)] = 5
    """Newton-Schulz steps."""
    adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None
    """How the rate follows a matrix's shape (original when left out); match_rms_adamw: rates and decays as AdamW's."""


Optimizer = Annotated[
    SGD | Adam | AdamW | RMSprop | Adagrad | Adafactor | NAdam | RAdam | Muon, Field(discriminator="type")
]
