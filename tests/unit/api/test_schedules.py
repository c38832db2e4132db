"""Learning rate schedules, compared with torch and transformers at every step, and properties of all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.optim import lr_scheduler
from transformers import get_scheduler

from finetune_api.schedules import CosineAnnealing, EvalResult, Phase, ScheduleError, StepDecay, build_schedule

PHASE: TypeAdapter[Any] = TypeAdapter(Phase)


def factors(*phases: dict[str, Any], total: int, steps_per_epoch: int = 10) -> list[float]:
    schedule = build_schedule([PHASE.validate_python(phase) for phase in phases], total, steps_per_epoch)
    return [schedule.factor_at(step) for step in range(total)]


def reference(make: Any, total: int, every: int = 1) -> list[float]:
    """Learning rates of a torch scheduler with a base rate of 1, stepped once in `every` optimizer steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


def assert_close(ours: list[float], theirs: list[float]) -> None:
    assert ours == pytest.approx(theirs, abs=1e-12, rel=1e-12)


TORCH: dict[str, tuple[dict[str, Any], Any]] = {
    "LinearLR": (
        {"type": "Warmup", "startFactor": 1 / 3},
        lambda it: lr_scheduler.LinearLR(it, 1 / 3, total_iters=60),
    ),
    "LinearLR from a quarter": (
        {"type": "Warmup", "startFactor": 0.25},
        lambda it: lr_scheduler.LinearLR(it, 0.25, total_iters=60),
    ),
    "LinearLR, decreasing": (
        {"type": "LinearDecay", "endFactor": 0.2},
        lambda it: lr_scheduler.LinearLR(it, 1.0, 0.2, total_iters=60),
    ),
    "ConstantLR": (
        {"type": "Constant", "factor": 0.3},
        lambda it: lr_scheduler.ConstantLR(it, 0.3, total_iters=60),
    ),
    "StepLR": ({"type": "StepDecay", "factor": 0.5, "everySteps": 15}, lambda it: lr_scheduler.StepLR(it, 15, 0.5)),
    "StepLR every step": (
        {"type": "StepDecay", "factor": 0.97, "everySteps": 1},
        lambda it: lr_scheduler.StepLR(it, 1, 0.97),
    ),
    "StepLR in epochs": (
        {"type": "StepDecay", "factor": 0.1, "everyEpochs": 2},
        lambda it: lr_scheduler.StepLR(it, 20, 0.1),
    ),
    "MultiStepLR": (
        {"type": "StepDecay", "factor": 0.1, "milestones": [2, 3, 5.5]},
        lambda it: lr_scheduler.MultiStepLR(it, [20, 30, 55], 0.1),
    ),
    "ExponentialLR": (
        {"type": "ExponentialDecay", "gamma": 0.9, "unit": "Step"},
        lambda it: lr_scheduler.ExponentialLR(it, 0.9),
    ),
    "ExponentialLR, gamma near 1": (
        {"type": "ExponentialDecay", "gamma": 0.999, "unit": "Step"},
        lambda it: lr_scheduler.ExponentialLR(it, 0.999),
    ),
    "exponential decay by epochs": (
        {"type": "ExponentialDecay", "gamma": 0.5},
        lambda it: lr_scheduler.LambdaLR(it, lambda k: 0.5 ** (k / 10)),
    ),
    "time decay by epochs": (
        {"type": "TimeDecay", "rate": 0.5},
        lambda it: lr_scheduler.LambdaLR(it, lambda k: 1 / (1 + 0.5 * k / 10)),
    ),
    "time decay by steps": (
        {"type": "TimeDecay", "rate": 0.01, "unit": "Step"},
        lambda it: lr_scheduler.LambdaLR(it, lambda k: 1 / (1 + 0.01 * k)),
    ),
    "time decay with staircase": (
        {"type": "TimeDecay", "rate": 2.0, "staircase": True},
        lambda it: lr_scheduler.LambdaLR(it, lambda k: 1 / (1 + 2 * (k // 10))),
    ),
    "CosineAnnealingLR": ({"type": "CosineAnnealing"}, lambda it: lr_scheduler.CosineAnnealingLR(it, 60)),
    "CosineAnnealingLR with a minimum": (
        {"type": "CosineAnnealing", "minFactor": 0.05},
        lambda it: lr_scheduler.CosineAnnealingLR(it, 60, 0.05),
    ),
    "CosineAnnealingWarmRestarts": (
        {"type": "CosineAnnealing", "periodSteps": 7},
        lambda it: lr_scheduler.CosineAnnealingWarmRestarts(it, 7),
    ),
    "CosineAnnealingWarmRestarts, T_mult 2": (
        {"type": "CosineAnnealing", "periodSteps": 5, "periodMultiplier": 2, "minFactor": 0.01},
        lambda it: lr_scheduler.CosineAnnealingWarmRestarts(it, 5, 2, 0.01),
    ),
    "CosineAnnealingWarmRestarts in epochs": (
        {"type": "CosineAnnealing", "periodEpochs": 1, "periodMultiplier": 3},
        lambda it: lr_scheduler.CosineAnnealingWarmRestarts(it, 10, 3),
    ),
    "PolynomialLR": (
        {"type": "PolynomialDecay", "power": 2},
        lambda it: lr_scheduler.PolynomialLR(it, 60, 2.0),
    ),
    "PolynomialLR, power 0.5": (
        {"type": "PolynomialDecay", "power": 0.5},
        lambda it: lr_scheduler.PolynomialLR(it, 60, 0.5),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_equals_torch_scheduler_at_every_step(name: str) -> None:
    """torch computes LinearLR, ExponentialLR and PolynomialLR from the previous rate; rounding errors accumulate.

    They reach 1e-15 in these 60 steps and 4e-14 in 20,000 steps; the closed form has none.
    """
    phase, make = TORCH[name]
    assert_close(factors(phase, total=60), reference(make, 60))


@pytest.mark.parametrize("gamma", [0.9, 0.5])
def test_staircase_equals_exponential_lr_stepped_once_per_epoch(gamma: float) -> None:
    theirs = reference(lambda it: lr_scheduler.ExponentialLR(it, gamma), 60, every=10)
    assert_close(factors({"type": "ExponentialDecay", "gamma": gamma, "staircase": True}, total=60), theirs)


COSINE, WARMUP = {"type": "CosineAnnealing"}, {"type": "Warmup", "steps": 7}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "constant": ("constant", {}, [{"type": "Constant"}]),
    "constant_with_warmup": ("constant_with_warmup", {}, [WARMUP, {"type": "Constant"}]),
    "linear": ("linear", {}, [WARMUP, {"type": "LinearDecay"}]),
    "cosine": ("cosine", {}, [WARMUP, COSINE]),
    "cosine_with_restarts": (
        "cosine_with_restarts",
        {"num_cycles": 3},
        [WARMUP, {"type": "CosineAnnealing", "cycles": 3}],
    ),
    "cosine_with_min_lr": (
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
        [WARMUP, {"type": "CosineAnnealing", "minFactor": 0.1}],
    ),
    "polynomial": ("polynomial", {}, [WARMUP, {"type": "PolynomialDecay", "endFactor": 1e-7}]),
    "polynomial, power 2": (
        "polynomial",
        {"power": 2.0, "lr_end": 0.1},
        [WARMUP, {"type": "PolynomialDecay", "power": 2, "endFactor": 0.1}],
    ),
    "inverse_sqrt": ("inverse_sqrt", {}, [WARMUP, {"type": "InverseSqrt", "timescaleSteps": 7}]),
    "inverse_sqrt, timescale 100": (
        "inverse_sqrt",
        {"timescale": 100},
        [WARMUP, {"type": "InverseSqrt", "timescaleSteps": 100}],
    ),
    "warmup_stable_decay": (
        "warmup_stable_decay",
        {"num_stable_steps": 21, "num_decay_steps": 38, "decay_type": "linear"},
        [WARMUP, {"type": "Constant", "steps": 21}, {"type": "LinearDecay"}],
    ),
    "warmup_stable_decay with cosine": (
        "warmup_stable_decay",
        {"num_stable_steps": 21, "num_decay_steps": 38},
        [WARMUP, {"type": "Constant", "steps": 21}, COSINE],
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_equals_transformers_schedule_at_every_step(name: str) -> None:
    theirs, arguments, phases = TRANSFORMERS[name]
    warmup = None if theirs == "constant" else 7

    def make(optimizer: torch.optim.Optimizer) -> Any:
        steps = None if theirs.startswith(("constant", "inverse", "warmup")) else 66
        return get_scheduler(theirs, optimizer, warmup, steps, arguments)

    assert_close(factors(*phases, total=66), reference(make, 66))


VALUES = [
    [5.0, 4.0, 3.0, 2.0, 1.0],
    [5.0] * 12,
    [5.0, 4.0, 4.2, 4.1, 4.0, 3.9, 4.0, 3.9, 3.8, 3.9, 3.9, 3.9, 3.9],
    [math.nan, 3.0, math.nan, math.inf, 3.0, math.nan, 2.0],
]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize(("factor", "delta"), [(0.1, 0.0), (0.5, 0.15)])
def test_equals_reduce_lr_on_plateau(values: list[float], patience: int, factor: float, delta: float) -> None:
    """One evaluation every 5 steps; eps=0, because torch ignores reductions below 1e-8 by default."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=delta, threshold_mode="abs", eps=0
    )
    phase = {"type": "Plateau", "factor": factor, "patience": patience, "minDelta": delta}
    schedule = build_schedule([PHASE.validate_python(phase)], 5 * len(values) + 5, 10)
    eval_history: list[EvalResult] = []
    for step in range(5 * len(values) + 5):
        if step and step % 5 == 0:
            eval_history.append((step, values[step // 5 - 1]))
            scheduler.step(values[step // 5 - 1])
        assert_close([schedule.factor_at(step, eval_history)], [optimizer.param_groups[0]["lr"]])


def test_plateau_ignores_evaluations_before_its_phase_and_after_the_step() -> None:
    phases = [{"type": "Warmup", "steps": 10}, {"type": "Plateau", "factor": 0.5, "patience": 0}]
    schedule = build_schedule([PHASE.validate_python(phase) for phase in phases], 40, 10)
    before: list[EvalResult] = [(0, 1.0), (5, 9.0), (10, 9.0)]
    after: list[EvalResult] = [(15, 3.0), (20, 4.0), (25, 5.0)]
    assert schedule.factor_at(5, before) == 0.5
    eval_history = [*before, *after]
    found = [schedule.factor_at(step, eval_history) for step in (10, 15, 19, 20, 25, 39)]
    assert found == [1, 1, 1, 0.5, 0.25, 0.25]
    assert [schedule.factor_at(step) for step in (10, 20, 39)] == [1, 1, 1]


def test_step_counts_from_start_of_phase() -> None:
    ours = factors(
        {"type": "Constant", "steps": 5}, {"type": "Warmup", "steps": 5}, {"type": "TimeDecay", "rate": 1}, total=15
    )
    assert ours[5:10] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert ours[10] == 1.0


def test_durations_in_epochs_and_fractions() -> None:
    ours = factors({"type": "Constant", "factor": 0, "epochs": 1}, {"type": "Constant", "factor": 1, "fraction": 0.5},
                   {"type": "Constant", "factor": 2}, total=40)  # fmt: skip
    assert [ours.count(factor) for factor in (0, 1, 2)] == [10, 20, 10]


def test_rejects_phases_longer_than_the_run() -> None:
    with pytest.raises(ScheduleError, match=r"schedule\[1\] lasts 30 steps, but only 15 of the module's 20"):
        factors({"type": "Warmup", "steps": 5}, {"type": "Constant", "steps": 30}, total=20)


def test_rejects_phases_shorter_than_the_run() -> None:
    with pytest.raises(ScheduleError, match="ends 15 steps before"):
        factors({"type": "Warmup", "steps": 5}, total=20)


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.1, 0.9), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("total", [5, 7, 15, 25, 1235])
def test_fractions_that_sum_to_one_cover_any_number_of_steps(parts: tuple[float, ...], total: int) -> None:
    assert len(factors(*({"type": "Constant", "fraction": part} for part in parts), total=total)) == total


def test_every_cosine_cycle_starts_at_the_base_rate() -> None:
    for cycles in range(2, 8):
        for total in range(20, 200):
            ours = factors({"type": "CosineAnnealing", "cycles": cycles}, total=total)
            starts = [k for k in range(total) if k * cycles % total < cycles]
            assert all(ours[k] > 0.7 for k in starts), (cycles, total)


def test_schedule_of_zero_steps() -> None:
    assert build_schedule([PHASE.validate_python({"type": "Warmup", "steps": 5})], 0, 10).factor_at(0) == 0.0


DURATION = st.one_of(
    st.just({}),
    st.builds(lambda n: {"steps": n}, st.integers(1, 20)),
    st.builds(lambda f: {"fraction": f}, st.floats(0.01, 0.3)),
)
KINDS = st.one_of(
    st.builds(lambda f: {"type": "Constant", "factor": f}, st.floats(0, 1)),
    st.builds(lambda s: {"type": "Warmup", "startFactor": s}, st.floats(0, 1)),
    st.builds(lambda r, c: {"type": "TimeDecay", "rate": r, "staircase": c}, st.floats(0, 10), st.booleans()),
    st.builds(lambda g: {"type": "ExponentialDecay", "gamma": g}, st.floats(0.1, 1)),
    st.builds(lambda f, n: {"type": "StepDecay", "factor": f, "everySteps": n}, st.floats(0, 1), st.integers(1, 30)),
    st.builds(
        lambda m, n: {"type": "CosineAnnealing", "minFactor": m, "cycles": n}, st.floats(0, 1), st.integers(1, 5)
    ),
    st.builds(
        lambda n, m: {"type": "CosineAnnealing", "periodSteps": n, "periodMultiplier": m},
        st.integers(1, 40),
        st.integers(1, 4),
    ),
    st.builds(lambda e: {"type": "LinearDecay", "endFactor": e}, st.floats(0, 1)),
    st.builds(lambda e, p: {"type": "PolynomialDecay", "endFactor": e, "power": p}, st.floats(0, 1), st.floats(0.1, 9)),
    st.builds(lambda t: {"type": "InverseSqrt", "timescaleSteps": t}, st.integers(1, 10_000)),
    st.builds(
        lambda f, p: {"type": "Plateau", "factor": f, "patience": p},
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 3),
    ),
)
EVALUATIONS = st.lists(st.tuples(st.integers(0, 300), st.floats()), max_size=20).map(sorted)


@given(
    st.lists(st.tuples(KINDS, DURATION), min_size=1, max_size=4),
    KINDS,
    st.integers(1, 300),
    st.integers(1, 50),
    EVALUATIONS,
)
def test_factor_is_within_bounds(
    head: list[tuple[dict[str, Any], dict[str, Any]]],
    tail: dict[str, Any],
    total: int,
    steps_per_epoch: int,
    evaluations: list[EvalResult],
) -> None:
    phases = [PHASE.validate_python(kind | duration) for kind, duration in head if duration]
    phases.append(PHASE.validate_python(tail))
    try:
        schedule = build_schedule(phases, total, steps_per_epoch)
    except ScheduleError:
        return
    assert sum(length for _, length in schedule.phases) == total
    for step in range(total + 5):
        assert 0.0 <= schedule.factor_at(step, evaluations) <= 1.0 + 1e-12


@given(KINDS, st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), EVALUATIONS)
def test_phase_is_independent_of_earlier_phases(
    kind: dict[str, Any], before: int, length: int, steps_per_epoch: int, evaluations: list[EvalResult]
) -> None:
    phase = PHASE.validate_python(kind)
    alone = build_schedule([phase], length, steps_per_epoch)
    first = PHASE.validate_python({"type": "Constant", "factor": 0.5, "steps": before})
    later = build_schedule([first, phase], before + length, steps_per_epoch)
    shifted = [(step + before, value) for step, value in evaluations]
    for step in range(length):
        assert later.factor_at(before + step, shifted) == alone.factor_at(step, evaluations)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"type": "Warmup", "steps": 1, "epochs": 1}, "at most one of steps, epochs and fraction"),
        ({"type": "StepDecay", "factor": 0.1}, "exactly one of everySteps, everyEpochs and milestones"),
        ({"type": "CosineAnnealing", "cycles": 2, "periodSteps": 3}, "at most one of cycles"),
        ({"type": "CosineAnnealing", "periodMultiplier": 2}, "periodMultiplier requires"),
        ({"type": "Plateau", "factor": 1.0}, "factor must be less than 1 for Plateau"),
        ({"type": "StepDecay", "factor": 2.0, "everySteps": 1}, "factor must be at most 1 for StepDecay"),
    ],
)
def test_rejects_contradictory_fields(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PHASE.validate_python(phase)


@given(st.floats(0.01, 5.0), st.integers(1, 40))
def test_periods_in_epochs_do_not_drift(epochs: float, steps_per_epoch: int) -> None:
    """The k-th reduction and the k-th restart are at step round(k * period)."""
    period, steps = max(1.0, epochs * steps_per_epoch), 200
    ends = [round(k * period) for k in range(1, steps + 1) if round(k * period) < steps]
    decay = StepDecay.model_validate({"type": "StepDecay", "factor": 0.5, "everyEpochs": epochs})
    factors = [decay.factor_at(step, steps, steps_per_epoch) for step in range(steps)]
    assert [step for step in range(1, steps) if factors[step] < factors[step - 1]] == ends
    cosine = CosineAnnealing.model_validate({"type": "CosineAnnealing", "periodEpochs": epochs})
    cycle_starts = [step for step in range(1, steps) if cosine.factor_at(step, steps, steps_per_epoch) == 1.0]
    assert cycle_starts == ends


def test_longer_cycles_in_epochs_do_not_drift() -> None:
    fields = {"type": "CosineAnnealing", "periodEpochs": 0.5, "periodMultiplier": 2}
    cosine = CosineAnnealing.model_validate(fields)
    assert [step for step in range(40) if cosine.factor_at(step, 40, 5) == 1.0] == [0, 2, 8, 18, 38]
