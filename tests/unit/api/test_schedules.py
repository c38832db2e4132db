"""Schedules are formulae: checked against torch and transformers step by step, and for what holds of any of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import get_scheduler

from finetune_api.schedules import Phase, ScheduleError, lay_out

PHASE: TypeAdapter[Any] = TypeAdapter(Phase)


def factors(*phases: dict[str, Any], total: int, steps_per_epoch: int = 10) -> list[float]:
    schedule = lay_out([PHASE.validate_python(phase) for phase in phases], total, steps_per_epoch)
    return [schedule.factor(step) for step in range(total)]


def reference(make: Any, total: int, every: int = 1) -> list[float]:
    """The rates a torch scheduler gives to a base rate of 1; `every` steps of ours are one of the scheduler's."""
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


def test_warmup_is_torchs_linear_lr() -> None:
    theirs = reference(lambda it: torch.optim.lr_scheduler.LinearLR(it, 1 / 3, total_iters=20), 20)
    assert_close(factors({"type": "Warmup", "startFactor": 1 / 3}, total=20), theirs)


def test_warmup_then_cosine_is_transformers() -> None:
    theirs = reference(lambda it: get_scheduler("cosine", it, num_warmup_steps=7, num_training_steps=50), 50)
    assert_close(factors({"type": "Warmup", "steps": 7}, {"type": "CosineAnnealing"}, total=50), theirs)


def test_cosine_cycles_are_transformers_hard_restarts() -> None:
    theirs = reference(
        lambda it: get_scheduler(
            "cosine_with_restarts",
            it,
            num_warmup_steps=6,
            num_training_steps=66,
            scheduler_specific_kwargs={"num_cycles": 3},
        ),
        66,
    )
    ours = factors({"type": "Warmup", "steps": 6}, {"type": "CosineAnnealing", "cycles": 3}, total=66)
    assert_close(ours, theirs)


def test_cosine_with_growing_periods_is_torchs_warm_restarts() -> None:
    theirs = reference(
        lambda it: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(it, T_0=5, T_mult=2, eta_min=0.01), 60
    )
    ours = factors({"type": "CosineAnnealing", "periodSteps": 5, "periodMultiplier": 2, "minFactor": 0.01}, total=60)
    assert_close(ours, theirs)


def test_step_decay_is_torchs_step_lr_and_multi_step_lr() -> None:
    step = reference(lambda it: torch.optim.lr_scheduler.StepLR(it, 15, 0.5), 60)
    assert_close(factors({"type": "StepDecay", "factor": 0.5, "everySteps": 15}, total=60), step)
    milestones = reference(lambda it: torch.optim.lr_scheduler.MultiStepLR(it, [2, 3], 0.1), 60, every=10)
    assert_close(factors({"type": "StepDecay", "factor": 0.1, "milestones": [2, 3]}, total=60), milestones)


@pytest.mark.parametrize(("unit", "every", "staircase"), [("Step", 1, False), ("Epoch", 10, True)])
def test_exponential_decay_is_torchs(unit: str, every: int, staircase: bool) -> None:
    theirs = reference(lambda it: torch.optim.lr_scheduler.ExponentialLR(it, 0.9), 40, every)
    assert_close(
        factors({"type": "ExponentialDecay", "gamma": 0.9, "unit": unit, "staircase": staircase}, total=40), theirs
    )


def test_time_decay_is_its_formula() -> None:
    theirs = reference(lambda it: torch.optim.lr_scheduler.LambdaLR(it, lambda k: 1 / (1 + 0.5 * k / 10)), 40)
    assert_close(factors({"type": "TimeDecay", "rate": 0.5}, total=40), theirs)


def test_constant_is_constant() -> None:
    assert factors({"type": "Constant", "factor": 0.3}, total=3) == [0.3, 0.3, 0.3]


def test_position_is_local_to_the_phase() -> None:
    ours = factors(
        {"type": "Constant", "steps": 5}, {"type": "Warmup", "steps": 5}, {"type": "TimeDecay", "rate": 1}, total=15
    )
    assert ours[5:10] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert ours[10] == 1.0


def test_durations_in_epochs_and_fractions() -> None:
    ours = factors({"type": "Constant", "factor": 0, "epochs": 1}, {"type": "Constant", "factor": 1, "fraction": 0.5},
                   {"type": "Constant", "factor": 2}, total=40)  # fmt: skip
    assert [ours.count(factor) for factor in (0, 1, 2)] == [10, 20, 10]


def test_phases_longer_than_the_run_are_refused() -> None:
    with pytest.raises(ScheduleError, match=r"schedule\[1\] lasts 30 steps, but only 15 of the module's 20"):
        factors({"type": "Warmup", "steps": 5}, {"type": "Constant", "steps": 30}, total=20)


def test_phases_shorter_than_the_run_are_refused() -> None:
    with pytest.raises(ScheduleError, match="ends 15 steps before"):
        factors({"type": "Warmup", "steps": 5}, total=20)


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.1, 0.9), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("total", [5, 7, 15, 25, 1235])
def test_fractions_that_make_a_whole_fill_any_number_of_steps(parts: tuple[float, ...], total: int) -> None:
    assert len(factors(*({"type": "Constant", "fraction": part} for part in parts), total=total)) == total


def test_every_cosine_cycle_begins_at_the_full_rate() -> None:
    for cycles in range(2, 8):
        for total in range(20, 200):
            ours = factors({"type": "CosineAnnealing", "cycles": cycles}, total=total)
            starts = [k for k in range(total) if k * cycles % total < cycles]
            assert all(ours[k] > 0.7 for k in starts), (cycles, total)


def test_a_module_that_never_trains_needs_no_clock() -> None:
    assert lay_out([PHASE.validate_python({"type": "Warmup", "steps": 5})], 0, 10).factor(0) == 0.0


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
)


@given(st.lists(st.tuples(KINDS, DURATION), min_size=1, max_size=4), KINDS, st.integers(1, 300), st.integers(1, 50))
def test_every_schedule_that_fits_gives_a_factor_within_bounds(
    head: list[tuple[dict[str, Any], dict[str, Any]]], tail: dict[str, Any], total: int, steps_per_epoch: int
) -> None:
    phases = [PHASE.validate_python(kind | duration) for kind, duration in head if duration]
    phases.append(PHASE.validate_python(tail))
    try:
        schedule = lay_out(phases, total, steps_per_epoch)
    except ScheduleError:
        return
    assert sum(length for _, length in schedule.phases) == total
    for step in range(total + 5):
        assert 0.0 <= schedule.factor(step) <= 1.0 + 1e-12
        assert math.isfinite(schedule.factor(step))


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({"type": "Warmup", "steps": 1, "epochs": 1}, "at most one of steps, epochs and fraction"),
        ({"type": "StepDecay", "factor": 0.1}, "exactly one of everySteps, everyEpochs and milestones"),
        ({"type": "CosineAnnealing", "cycles": 2, "periodSteps": 3}, "at most one of cycles"),
        ({"type": "CosineAnnealing", "periodMultiplier": 2}, "periodMultiplier needs"),
    ],
)
def test_contradictions_are_refused(phase: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PHASE.validate_python(phase)
