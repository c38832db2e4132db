"""Optimizers of a module, with the parameter names of torch in camelCase and the defaults of torch.

Three names are spelled out: `lr` is `learningRate`, `eps` is `epsilon`, and `betas` are `beta1` and `beta2`.

The trainer chooses `fused` and `foreach`. To add one: add a class here, and a line to the table in the trainer.
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
    """Base learning rate, which the schedule multiplies by a factor."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay (L2 penalty)."""


class SGD(BaseOptimizer):
    """Stochastic gradient descent, optionally with momentum (torch.optim.SGD)."""

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
    """Momentum factor."""
    dampening: UnitInterval = 0.0
    """Dampening for momentum."""
    nesterov: bool = False
    """Whether to use Nesterov momentum."""


class Adam(BaseOptimizer):
    """Adaptive moment estimation, with weight decay as an L2 penalty (torch.optim.Adam, arXiv 1412.6980)."""

    type: Literal["Adam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Coefficient for the running average of the gradient."""
    beta2: HalfOpenUnitInterval = 0.999
    """Coefficient for the running average of the squared gradient."""
    epsilon: Epsilon = 1e-8
    """Term added to the denominator for numerical stability."""
    amsgrad: bool = False
    """Whether to use the AMSGrad variant (arXiv 1904.09237)."""


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay (torch.optim.AdamW, arXiv 1711.05101)."""

    type: Literal["AdamW"]
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay coefficient."""
    beta1: HalfOpenUnitInterval = 0.9
    """Coefficient for the running average of the gradient."""
    beta2: HalfOpenUnitInterval = 0.999
    """Coefficient for the running average of the squared gradient."""
    epsilon: Epsilon = 1e-8
    """Term added to the denominator for numerical stability."""
    amsgrad: bool = False
    """Whether to use the AMSGrad variant (arXiv 1904.09237)."""


class RMSprop(BaseOptimizer):
    """Gradient divided by a running average of its magnitude (torch.optim.RMSprop)."""

    type: Literal["RMSprop"]
    alpha: HalfOpenUnitInterval = 0.99
    """Smoothing constant of the running average of the squared gradient."""
    epsilon: Epsilon = 1e-8
    """Term added to the denominator for numerical stability."""
    momentum: HalfOpenUnitInterval = 0.0
    """Momentum factor."""
    centered: bool = False
    """Whether to normalize the gradient by an estimate of its variance."""


class Adagrad(BaseOptimizer):
    """Adaptive subgradient method (torch.optim.Adagrad, JMLR 12, 2011). Instead of its `lr_decay`, use a schedule."""

    type: Literal["Adagrad"]
    initial_accumulator_value: NonNegativeFloat = 0.0
    """Initial value of the sum of squared gradients."""
    epsilon: Epsilon = 1e-10
    """Term added to the denominator for numerical stability."""


class Adafactor(BaseOptimizer):
    """Adam with a factored second moment and no first moment (torch.optim.Adafactor, arXiv 1804.04235).

    As in torch, the step size is min(learning rate, 1/√t) times the root mean square of the parameter (at least 0.001),
    where t counts the steps since the module was unfrozen. A learning rate above 1/√t has no effect, and learning rates
    for AdamW are too small. Weight decay is decoupled and scaled by the learning rate alone.
    """

    type: Literal["Adafactor"]
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay coefficient."""
    beta2_decay: Annotated[float, Field(ge=-1, le=0, alias="beta2Decay")] = -0.8
    """Decay rate of beta2: the coefficient of the running average at step t, counted from 1, is 1 - t^beta2Decay."""
    d: Annotated[float, Field(ge=1, le=1_000_000)] = 1.0
    """Clipping threshold for the root mean square of an update."""


class NAdam(BaseOptimizer):
    """Adam with Nesterov momentum (torch.optim.NAdam)."""

    type: Literal["NAdam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Coefficient for the running average of the gradient."""
    beta2: HalfOpenUnitInterval = 0.999
    """Coefficient for the running average of the squared gradient."""
    epsilon: Epsilon = 1e-8
    """Term added to the denominator for numerical stability."""
    momentum_decay: NonNegativeFloat = 0.004
    """Momentum decay."""
    decoupled_weight_decay: bool = False
    """Whether to decouple the weight decay as in AdamW."""


class RAdam(BaseOptimizer):
    """Rectified Adam (torch.optim.RAdam, arXiv 1908.03265)."""

    type: Literal["RAdam"]
    beta1: HalfOpenUnitInterval = 0.9
    """Coefficient for the running average of the gradient."""
    beta2: HalfOpenUnitInterval = 0.999
    """Coefficient for the running average of the squared gradient."""
    epsilon: Epsilon = 1e-8
    """Term added to the denominator for numerical stability."""
    decoupled_weight_decay: bool = False
    """Whether to decouple the weight decay as in AdamW."""


class Muon(BaseOptimizer):
    """Momentum orthogonalized by Newton-Schulz iteration (torch.optim.Muon), for two-dimensional parameters only.

    Biases and normalization weights must be in a module with another optimizer. So should embeddings and the output
    layer, for which the authors of Muon use AdamW although they are matrices.
    """

    type: Literal["Muon"]
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay coefficient."""
    momentum: HalfOpenUnitInterval = 0.95
    """Momentum factor."""
    nesterov: bool = True
    """Whether to use Nesterov momentum."""
    epsilon: Epsilon = 1e-7
    """Term added to the denominator for numerical stability."""
    ns_steps: Annotated[int, Field(ge=1, le=99)] = 5
    """Number of Newton-Schulz iterations."""
    adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None
    """How the learning rate is adjusted to the shape of a matrix. With match_rms_adamw, learning rate and weight decay
    of AdamW can be reused. Defaults to original."""


Optimizer = Annotated[
    SGD | Adam | AdamW | RMSprop | Adagrad | Adafactor | NAdam | RAdam | Muon, Field(discriminator="type")
]
