"""Learning-rate schedules: each phase is a pure function of position that yields a factor on the base rate.

In plain Python, so that the picture before a run, the operator and the trainer share one formula. A schedule runs on
its module's own clock: the optimizer steps at which the module is trainable, counted from 0. Position is local to the
phase; nothing is inherited from the phase before. To add a schedule: one class with its `factor`, one name in `Phase`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Count, Epochs, Model, NonNegative, Rule, at_most_one, cel_count, exactly_one

Factor = Annotated[float, Field(ge=0, le=1000)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Unit = Literal["Step", "Epoch"]


class ScheduleError(ValueError):
    """A schedule that does not fit the run; the message names the phase and the numbers."""


class _Phase(Model):
    steps: Count | None = None
    """Duration in optimizer steps."""
    epochs: Epochs | None = None
    """Duration in epochs."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Duration as a part of the module's trainable steps, in (0, 1]."""

    @property
    def is_timed(self) -> bool:
        """Whether it says how long it lasts."""
        return not (self.steps is None and self.epochs is None and self.fraction is None)

    @abstractmethod
    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        """The factor on the base rate at step `k` of the `n` steps of this phase (0 <= k < n)."""

    def duration(self, total: int, steps_per_epoch: int) -> float | None:
        """Steps this phase lasts on a clock of `total` steps, not yet rounded; None when it fills what is left."""
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        if self.fraction is not None:
            return self.fraction * total
        return None


_ONE_DURATION = Rule(
    field="steps",
    message="set at most one of steps, epochs and fraction",
    cel=f"{cel_count('steps', 'epochs', 'fraction')} <= 1",
    holds=at_most_one("steps", "epochs", "fraction"),
)


class Constant(_Phase):
    """f(k) = factor."""

    rules = (_ONE_DURATION,)
    type: Literal["Constant"]
    factor_: Annotated[Factor, Field(alias="factor")] = 1.0
    """The factor."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.factor_


class Warmup(_Phase):
    """f(k) = s + (1 - s)·k/n: 0 starts as transformers does, 1/3 as torch's LinearLR."""

    rules = (_ONE_DURATION,)
    type: Literal["Warmup"]
    start_factor: UnitInterval = 0.0
    """Factor at the first step."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.start_factor + (1.0 - self.start_factor) * k / n


class TimeDecay(_Phase):
    """f(k) = 1 / (1 + rate·t), t in steps or epochs."""

    rules = (_ONE_DURATION,)
    type: Literal["TimeDecay"]
    rate: NonNegative
    """How fast it decays: at 1, the rate is halved after one unit."""
    unit: Unit = "Epoch"
    """What t counts."""
    staircase: bool = False
    """Change only at whole units."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return 1.0 / (1.0 + self.rate * _time(k, self.unit, self.staircase, steps_per_epoch))


class ExponentialDecay(_Phase):
    """f(k) = gamma^t, t in steps or epochs."""

    rules = (_ONE_DURATION,)
    type: Literal["ExponentialDecay"]
    gamma: Annotated[float, Field(gt=0, le=1)]
    """Factor per unit."""
    unit: Unit = "Epoch"
    """What t counts."""
    staircase: bool = False
    """Change only at whole units."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return float(self.gamma ** _time(k, self.unit, self.staircase, steps_per_epoch))


class StepDecay(_Phase):
    """f(k) = factor^(number of steps, epochs or milestones passed)."""

    rules = (
        _ONE_DURATION,
        Rule(
            field="everySteps",
            message="set exactly one of everySteps, everyEpochs and milestones",
            cel=f"{cel_count('everySteps', 'everyEpochs', 'milestones')} == 1",
            holds=exactly_one("every_steps", "every_epochs", "milestones"),
        ),
        Rule(
            field="factor",
            message="a StepDecay's factor is at most 1: above it, many drops are more than a number can hold",
            cel="!has(self.factor) || self.factor <= 1.0",
            holds=lambda it: it.factor_ <= 1,
        ),
    )
    type: Literal["StepDecay"]
    factor_: Annotated[Factor, Field(alias="factor")]
    """Factor at each drop."""
    every_steps: Count | None = None
    """A drop every so many steps."""
    every_epochs: Epochs | None = None
    """A drop every so many epochs."""
    milestones: Annotated[list[Epochs], Field(min_length=1, max_length=64)] | None = None
    """Drops at these epochs of the phase."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        if self.milestones is not None:
            passed = sum(k >= round(milestone * steps_per_epoch) for milestone in self.milestones)
        else:
            passed = k // _period(self.every_steps, self.every_epochs, steps_per_epoch)
        return float(self.factor_**passed)


class CosineAnnealing(_Phase):
    """f(k) = m + (1 - m)(1 + cos(π·j/T))/2, j steps into a cycle of T (SGDR, arXiv 1608.03983)."""

    rules = (
        _ONE_DURATION,
        Rule(
            field="cycles",
            message="set at most one of cycles, periodSteps and periodEpochs",
            cel=f"{cel_count('cycles', 'periodSteps', 'periodEpochs')} <= 1",
            holds=at_most_one("cycles", "period_steps", "period_epochs"),
        ),
        Rule(
            field="periodMultiplier",
            message="periodMultiplier needs periodSteps or periodEpochs",
            cel="!has(self.periodMultiplier) || has(self.periodSteps) || has(self.periodEpochs)",
            holds=lambda it: it.period_multiplier is None or bool(it.period_steps or it.period_epochs),
        ),
    )
    type: Literal["CosineAnnealing"]
    min_factor: UnitInterval = 0.0
    """Factor at the end of a cycle."""
    cycles: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Cycles of equal length that fill the phase (1 when no period is set either)."""
    period_steps: Count | None = None
    """Length of the first cycle in steps."""
    period_epochs: Epochs | None = None
    """Length of the first cycle in epochs."""
    period_multiplier: Annotated[int, Field(ge=1, le=100)] | None = None
    """Each cycle is so many times as long as the one before (1 when left out)."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        j, period = self._cycle(k, n, steps_per_epoch)
        return self.min_factor + (1.0 - self.min_factor) * (1.0 + math.cos(math.pi * j / period)) / 2.0

    def _cycle(self, k: int, n: int, steps_per_epoch: int) -> tuple[float, float]:
        """Steps into the current cycle, and its length."""
        if self.period_steps is None and self.period_epochs is None:
            cycles = self.cycles or 1
            # In whole numbers: a remainder of fractions would put some restarts at the end of the cycle before.
            return (k * cycles % n) / cycles, n / cycles
        length = _period(self.period_steps, self.period_epochs, steps_per_epoch)
        multiplier = self.period_multiplier or 1
        if multiplier == 1:
            return k % length, length
        while k >= length:
            k, length = k - length, length * multiplier
        return k, length


class LinearDecay(_Phase):
    """f(k) = e + (1 - e)(1 - k/n), as transformers' linear schedule."""

    rules = (_ONE_DURATION,)
    type: Literal["LinearDecay"]
    end_factor: UnitInterval = 0.0
    """Factor after the last step."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.end_factor + (1.0 - self.end_factor) * (1.0 - k / n)


class PolynomialDecay(_Phase):
    """f(k) = e + (1 - e)(1 - k/n)^power, as transformers' polynomial schedule."""

    rules = (_ONE_DURATION,)
    type: Literal["PolynomialDecay"]
    end_factor: UnitInterval = 0.0
    """Factor after the last step."""
    power: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Above 1 it falls faster at first, below 1 faster at the end."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return float(self.end_factor + (1.0 - self.end_factor) * (1.0 - k / n) ** self.power)


class InverseSqrt(_Phase):
    """f(k) = 1/√(1 + k/timescale), as transformers' inverse square root schedule after its warm-up."""

    rules = (_ONE_DURATION,)
    type: Literal["InverseSqrt"]
    timescale_steps: Count = 10_000
    """After so many steps the rate is down to 1/√2."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return 1.0 / math.sqrt(1.0 + k / self.timescale_steps)


class Plateau(_Phase):
    """f = factor^(times the metric stopped getting better), as torch's ReduceLROnPlateau with an absolute threshold.

    The metric and its direction are those of `evaluation`; evaluations before the phase began do not count.
    """

    rules = (
        _ONE_DURATION,
        Rule(
            field="factor",
            message="a Plateau's factor is below 1: each drop lowers the rate",
            cel="!has(self.factor) || self.factor < 1.0",
            holds=lambda it: it.factor_ < 1,
        ),
    )
    type: Literal["Plateau"]
    factor_: Annotated[Factor, Field(alias="factor")] = 0.1
    """Factor at each drop."""
    patience: Annotated[int, Field(ge=0, le=10_000)] = 10
    """So many evaluations in a row may be no better than the best; the next one drops the rate."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as better."""

    def factor(self, k: int, n: int, steps_per_epoch: int) -> float:
        return self.factor_after([])

    def factor_after(self, values: Sequence[float]) -> float:
        """The factor after evaluations in this phase gave these values of the metric; lower is better."""
        best, waited, drops = math.inf, 0, 0
        for value in values:
            best, waited = (value, 0) if value < best - self.min_delta else (best, waited + 1)
            if waited > self.patience:
                drops, waited = drops + 1, 0
        return float(self.factor_**drops)


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

Judgement = tuple[int, float]
"""An evaluation: the step of the module's clock it came after, and the metric's value; lower is better."""


@dataclass(frozen=True)
class Schedule:
    """Phases laid out on a module's clock.

    Args:
        phases: the phases with their lengths in steps; they fill the clock exactly.
        steps_per_epoch: optimizer steps in one epoch.
    """

    phases: tuple[tuple[_Phase, int], ...]
    steps_per_epoch: int

    def factor(self, step: int, judgements: Iterable[Judgement] = ()) -> float:
        """The factor on the base rate at `step` of the module's clock; the last value holds beyond the end.

        Args:
            judgements: the evaluations so far, which a Plateau follows; without any it is flat.
        """
        begin = 0
        for phase, length in self.phases[:-1]:
            if step < begin + length:
                return self._factor(phase, length, begin, step, judgements)
            begin += length
        phase, length = self.phases[-1]
        return self._factor(phase, length, begin, min(step, begin + length - 1), judgements)

    def _factor(self, phase: _Phase, length: int, begin: int, step: int, judgements: Iterable[Judgement]) -> float:
        if isinstance(phase, Plateau):
            return phase.factor_after([value for when, value in judgements if begin < when <= step])
        return phase.factor(step - begin, length, self.steps_per_epoch)


def build_schedule(phases: Sequence[_Phase], total: int, steps_per_epoch: int) -> Schedule:
    """Lay phases out on a clock of `total` steps.

    Raises:
        ScheduleError: the phases are longer than the clock, or end before it does.
    """
    if total == 0:
        return Schedule(((phases[-1], 1),), steps_per_epoch)
    laid: list[tuple[_Phase, int]] = []
    start, exact = 0, 0.0
    for position, phase in enumerate(phases):
        wanted = phase.duration(total, steps_per_epoch)
        exact = float(total) if wanted is None else exact + wanted
        # The running end is rounded, not each length: halves of an odd number of steps still fill it.
        end = round(exact)
        if end > total:
            raise ScheduleError(
                f"schedule[{position}] lasts {end - start} steps, but only {total - start} of the module's {total} "
                "trainable steps are left for it: shorten a phase or train longer"
            )
        if end > start:
            laid.append((phase, end - start))
        start = end
    if start < total:
        raise ScheduleError(
            f"the schedule ends {total - start} steps before the module's {total} trainable steps do: "
            "leave the duration of the last phase out, and it fills what is left"
        )
    return Schedule(tuple(laid), steps_per_epoch)


def _time(k: int, unit: Unit, staircase: bool, steps_per_epoch: int) -> float:
    t = float(k) if unit == "Step" else k / steps_per_epoch
    return float(math.floor(t)) if staircase else t


def _period(steps: int | None, epochs: float | None, steps_per_epoch: int) -> int:
    return steps if steps is not None else max(1, round((epochs or 1.0) * steps_per_epoch))
