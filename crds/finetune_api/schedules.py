"""Learning rate schedules: every phase is a pure function of the step that returns a factor of the base learning rate.

Plain Python, so that the plot of a schedule, the operator and the trainer share one implementation. A schedule counts
the steps of its module: only optimizer steps at which the module is trained count, starting from 0. Steps within a
phase start from 0 as well, and a phase does not depend on the one before it. The formulas in the docstrings give the
factor f at step k of the n steps of a phase. To add one: add a class with its `factor_at`, and add it to `Phase`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import (
    Epochs,
    Model,
    NonNegativeFloat,
    Rule,
    Steps,
    UnitInterval,
    at_most_one_of,
    exactly_one_of,
)

Factor = Annotated[float, Field(ge=0, le=1000)]
PositiveUnitInterval = Annotated[float, Field(gt=0, le=1)]
Unit = Literal["Step", "Epoch"]


class ScheduleError(ValueError):
    """A schedule that does not fit the run; the message names the phase and the numbers of steps."""


class BasePhase(Model):
    """Fields of every phase: its duration, which only the last phase of a schedule may omit."""

    rules: ClassVar[tuple[Rule, ...]] = (at_most_one_of("steps", "epochs", "fraction"),)

    steps: Steps | None = None
    """Duration of the phase in optimizer steps. Mutually exclusive with epochs and fraction."""
    epochs: Epochs | None = None
    """Duration of the phase in epochs. Mutually exclusive with steps and fraction."""
    fraction: PositiveUnitInterval | None = None
    """Duration of the phase as a fraction of the steps at which the module is trained. Mutually exclusive with steps
    and epochs."""

    @property
    def has_duration(self) -> bool:
        """Whether one of steps, epochs and fraction is set."""
        return not (self.steps is None and self.epochs is None and self.fraction is None)

    @abstractmethod
    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        """The factor of the base learning rate at step `k` of the `n` steps of this phase (0 <= k < n)."""

    def duration(self, total_steps: int, steps_per_epoch: int) -> float | None:
        """Duration in steps, not rounded, in a schedule of `total_steps`; None if the phase takes the rest."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        if self.fraction is not None:
            return self.fraction * total_steps
        return None


class Constant(BasePhase):
    """f(k) = factor."""

    type: Literal["Constant"]
    factor: Factor = 1.0
    """Factor of the base learning rate."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.factor


class Warmup(BasePhase):
    """f(k) = s + (1 - s)·k/n with s = startFactor: as in transformers with 0, as torch's LinearLR with 1/3."""

    type: Literal["Warmup"]
    start_factor: UnitInterval = 0.0
    """Factor at the first step; it increases linearly to 1."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.start_factor + (1.0 - self.start_factor) * k / n


class TimeDecay(BasePhase):
    """f(k) = 1 / (1 + rate·t), where t is the time since the start of the phase in steps or epochs."""

    type: Literal["TimeDecay"]
    rate: NonNegativeFloat
    """Decay rate: with 1, the learning rate is halved after one unit."""
    unit: Unit = "Epoch"
    """Unit of time: optimizer steps or epochs."""
    staircase: bool = False
    """Whether the learning rate decays at whole units only, instead of at every step."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return 1.0 / (1.0 + self.rate * _elapsed(k, self.unit, self.staircase, steps_per_epoch))


class ExponentialDecay(BasePhase):
    """f(k) = gamma^t, where t is the time since the start of the phase in steps or epochs."""

    type: Literal["ExponentialDecay"]
    gamma: PositiveUnitInterval
    """Factor by which the learning rate is multiplied per unit."""
    unit: Unit = "Epoch"
    """Unit of time: optimizer steps or epochs."""
    staircase: bool = False
    """Whether the learning rate decays at whole units only, instead of at every step."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return float(self.gamma ** _elapsed(k, self.unit, self.staircase, steps_per_epoch))


class StepDecay(BasePhase):
    """f(k) = factor^r, where r is the number of reductions so far: torch's StepLR and MultiStepLR."""

    rules = (
        *BasePhase.rules,
        exactly_one_of("everySteps", "everyEpochs", "milestones"),
        Rule(
            field="factor",
            message="factor must be at most 1 for StepDecay: a larger factor grows without bound",
            cel="!has(self.factor) || self.factor <= 1.0",
            is_valid=lambda phase: phase.factor <= 1,
        ),
    )
    type: Literal["StepDecay"]
    factor: Factor
    """Factor by which the learning rate is multiplied at each reduction."""
    every_steps: Steps | None = None
    """Number of optimizer steps between reductions. Mutually exclusive with everyEpochs and milestones."""
    every_epochs: Epochs | None = None
    """Number of epochs between reductions. Mutually exclusive with everySteps and milestones."""
    milestones: Annotated[list[Epochs], Field(min_length=1, max_length=64)] | None = None
    """Epochs, counted from the start of the phase, at which the learning rate is reduced. Mutually exclusive with
    everySteps and everyEpochs."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        if self.milestones is not None:
            reductions = sum(k >= round(milestone * steps_per_epoch) for milestone in self.milestones)
        else:
            reductions = _periods_before(k, _period_steps(self.every_steps, self.every_epochs, steps_per_epoch))
        return float(self.factor**reductions)


class CosineAnnealing(BasePhase):
    """f(k) = m + (1 - m)(1 + cos(π·j/T))/2 with m = minFactor, at step j of a cycle of T steps (arXiv 1608.03983)."""

    rules = (
        *BasePhase.rules,
        at_most_one_of("cycles", "periodSteps", "periodEpochs"),
        Rule(
            field="periodMultiplier",
            message="periodMultiplier requires periodSteps or periodEpochs",
            cel="!has(self.periodMultiplier) || has(self.periodSteps) || has(self.periodEpochs)",
            is_valid=lambda phase: phase.period_multiplier is None or bool(phase.period_steps or phase.period_epochs),
        ),
    )
    type: Literal["CosineAnnealing"]
    min_factor: UnitInterval = 0.0
    """Factor at the end of each cycle."""
    cycles: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of cycles of equal length in the phase. Mutually exclusive with periodSteps and periodEpochs. Defaults to
    1 if neither is set."""
    period_steps: Steps | None = None
    """Number of optimizer steps until the first restart. Mutually exclusive with cycles and periodEpochs."""
    period_epochs: Epochs | None = None
    """Number of epochs until the first restart. Mutually exclusive with cycles and periodSteps."""
    period_multiplier: Annotated[int, Field(ge=1, le=100)] | None = None
    """Factor by which the period increases after each restart. Defaults to 1."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        j, period = self._cycle(k, n, steps_per_epoch)
        return self.min_factor + (1.0 - self.min_factor) * (1.0 + math.cos(math.pi * j / period)) / 2.0

    def _cycle(self, k: int, n: int, steps_per_epoch: int) -> tuple[float, float]:
        """Steps since the start of the current cycle, and the length of the cycle."""
        if self.period_steps is None and self.period_epochs is None:
            cycles = self.cycles or 1
            # Integer arithmetic: the remainder of floats would move some restarts to the end of the cycle before.
            return (k * cycles % n) / cycles, n / cycles
        period = _period_steps(self.period_steps, self.period_epochs, steps_per_epoch)
        multiplier = self.period_multiplier or 1
        exact_start = _periods_before(k, period) * period if multiplier == 1 else 0.0
        while k >= round(exact_start + period):
            exact_start, period = exact_start + period, period * multiplier
        start, end = round(exact_start), round(exact_start + period)
        return k - start, end - start


class LinearDecay(BasePhase):
    """f(k) = e + (1 - e)(1 - k/n) with e = endFactor: the linear schedule of transformers."""

    type: Literal["LinearDecay"]
    end_factor: UnitInterval = 0.0
    """Factor at the end of the phase."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.end_factor + (1.0 - self.end_factor) * (1.0 - k / n)


class PolynomialDecay(BasePhase):
    """f(k) = e + (1 - e)(1 - k/n)^power with e = endFactor: the polynomial schedule of transformers."""

    type: Literal["PolynomialDecay"]
    end_factor: UnitInterval = 0.0
    """Factor at the end of the phase."""
    power: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Power of the polynomial. With 1, the decay is linear."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return float(self.end_factor + (1.0 - self.end_factor) * (1.0 - k / n) ** self.power)


class InverseSqrt(BasePhase):
    """f(k) = 1/√(1 + k/timescaleSteps): the inverse square root schedule of transformers after its warmup."""

    type: Literal["InverseSqrt"]
    timescale_steps: Steps = 10_000
    """Number of optimizer steps after which the factor is 1/√2."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return 1.0 / math.sqrt(1.0 + k / self.timescale_steps)


class Plateau(BasePhase):
    """f = factor^r, where r is the number of reductions so far: torch's ReduceLROnPlateau with threshold_mode `abs`.

    The metric and its direction are those of `evaluation`. Evaluations before the start of the phase are ignored.
    """

    rules = (
        *BasePhase.rules,
        Rule(
            field="factor",
            message="factor must be less than 1 for Plateau",
            cel="!has(self.factor) || self.factor < 1.0",
            is_valid=lambda phase: phase.factor < 1,
        ),
    )
    type: Literal["Plateau"]
    factor: Factor = 0.1
    """Factor by which the learning rate is multiplied at each reduction."""
    patience: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Number of consecutive evaluations without improvement that are allowed before the learning rate is reduced."""
    min_delta: NonNegativeFloat = 0.0
    """Minimum change of the metric that counts as an improvement."""

    def factor_at(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.factor_after([])

    def factor_after(self, values: Iterable[float]) -> float:
        """The factor after the evaluations in this phase returned these values of the metric; lower is better."""
        best, bad_evals, reductions = math.inf, 0, 0
        for value in values:
            best, bad_evals = (value, 0) if value < best - self.min_delta else (best, bad_evals + 1)
            if bad_evals > self.patience:
                reductions, bad_evals = reductions + 1, 0
        return float(self.factor**reductions)


Phase = Annotated[
    Constant
    | Warmup
    | TimeDecay
    | StepDecay
    | ExponentialDecay
    | CosineAnnealing
    | LinearDecay
    | PolynomialDecay
    | InverseSqrt
    | Plateau,
    Field(discriminator="type"),
]

EvalResult = tuple[int, float]
"""One evaluation: the step after which it took place, and the value of the metric; lower is better."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule of a module, with the phases resolved to steps.

    Args:
        phases: the phases with their lengths in steps; together they cover every step of the module.
        steps_per_epoch: optimizer steps in one epoch.
    """

    phases: tuple[tuple[BasePhase, int], ...]
    steps_per_epoch: int

    def factor_at(self, step: int, eval_history: Iterable[EvalResult] = ()) -> float:
        """The factor of the base learning rate at `step` of the module; after the last step it stays constant.

        Args:
            eval_history: the evaluations so far, at steps of the module. Plateau follows them; without any it is 1.
        """
        start = 0
        for phase, length in self.phases[:-1]:
            if step < start + length:
                return self._factor_in(phase, length, start, step, eval_history)
            start += length
        phase, length = self.phases[-1]
        return self._factor_in(phase, length, start, min(step, start + length - 1), eval_history)

    def _factor_in(
        self, phase: BasePhase, length: int, start: int, step: int, eval_history: Iterable[EvalResult]
    ) -> float:
        if isinstance(phase, Plateau):
            return phase.factor_after(value for eval_step, value in eval_history if start < eval_step <= step)
        return phase.factor_at(step - start, length, self.steps_per_epoch)


def build_schedule(phases: Sequence[BasePhase], total_steps: int, steps_per_epoch: int) -> Schedule:
    """Resolve the durations of the phases to steps.

    Args:
        total_steps: number of steps at which the module is trained.

    Raises:
        ScheduleError: the phases are longer or shorter than `total_steps`.
    """
    if total_steps == 0:
        return Schedule(((phases[-1], 1),), steps_per_epoch)
    resolved: list[tuple[BasePhase, int]] = []
    start, exact_end = 0, 0.0
    for index, phase in enumerate(phases):
        duration = phase.duration(total_steps, steps_per_epoch)
        exact_end = float(total_steps) if duration is None else exact_end + duration
        # The end is rounded instead of the length, so that two halves of an odd number of steps add up to all steps.
        end = round(exact_end)
        if end > total_steps:
            raise ScheduleError(
                f"schedule[{index}] lasts {end - start} steps, but only {total_steps - start} of the module's "
                f"{total_steps} trainable steps are left: shorten a phase or train longer"
            )
        if end > start:
            resolved.append((phase, end - start))
        start = end
    if start < total_steps:
        raise ScheduleError(
            f"the schedule ends {total_steps - start} steps before the module's {total_steps} trainable steps: "
            "omit the duration of the last phase to make it cover the rest"
        )
    return Schedule(tuple(resolved), steps_per_epoch)


def _elapsed(k: int, unit: Unit, staircase: bool, steps_per_epoch: int) -> float:
    elapsed = float(k) if unit == "Step" else k / steps_per_epoch
    return float(math.floor(elapsed)) if staircase else elapsed


def _period_steps(steps: int | None, epochs: float | None, steps_per_epoch: int) -> float:
    """A period in steps, at least one. It is not rounded: the ends of periods are, so that they do not drift."""
    return float(steps) if steps is not None else max(1.0, (epochs or 1.0) * steps_per_epoch)


def _periods_before(k: int, period: float) -> int:
    """Number of periods that have ended after `k` steps; the j-th ends after round(j * period) steps."""
    count = int(k / period) + 1
    while count and round(count * period) > k:
        count -= 1
    return count
