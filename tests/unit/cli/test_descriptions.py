"""Descriptions, log lines and plots: short and complete for any settings."""

import doctest
import io
import math
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from finetune_api.optimizers import Optimizer
from finetune_api.schedules import Phase
from finetune_trainer import formatting
from finetune_trainer.callbacks import StepRecord
from finetune_trainer.cli import console, describe, plots

DURATIONS = st.one_of(
    st.just({}),
    st.integers(1, 10_000).map(lambda steps: {"steps": steps}),
    st.floats(0.1, 100).map(lambda epochs: {"epochs": epochs}),
    st.floats(0.01, 1).map(lambda fraction: {"fraction": fraction}),
)
UNITS = st.fixed_dictionaries({"unit": st.sampled_from(["Step", "Epoch"]), "staircase": st.booleans()})
SHAPES = st.one_of(
    st.floats(0, 10).map(lambda factor: {"type": "Constant", "factor": factor}),
    st.floats(0, 1).map(lambda start: {"type": "Warmup", "startFactor": start}),
    st.builds(lambda rate, unit: {"type": "TimeDecay", "rate": rate, **unit}, st.floats(0, 10), UNITS),
    st.builds(lambda gamma, unit: {"type": "ExponentialDecay", "gamma": gamma, **unit}, st.floats(0.01, 1), UNITS),
    st.integers(1, 99).map(lambda steps: {"type": "StepDecay", "factor": 0.1, "everySteps": steps}),
    st.lists(st.floats(0.5, 99), min_size=1, max_size=3).map(
        lambda at: {"type": "StepDecay", "factor": 0.1, "milestones": at}
    ),
    st.integers(1, 9).map(lambda cycles: {"type": "CosineAnnealing", "cycles": cycles}),
    st.builds(
        lambda epochs, times: {"type": "CosineAnnealing", "periodEpochs": epochs, "periodMultiplier": times},
        st.floats(0.1, 9),
        st.integers(1, 4),
    ),
)
PHASES = st.lists(st.builds(lambda shape, length: {**shape, **length}, SHAPES, DURATIONS), min_size=1, max_size=5)


def phases(documents: list[dict[str, Any]]) -> list[Phase]:
    parsed: list[Phase] = TypeAdapter(list[Phase]).validate_python(documents)
    return parsed


@pytest.mark.parametrize("module", [formatting, describe, console, plots])
def test_docstring_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@given(PHASES)
def test_schedule_description_is_one_line_with_every_phase(documents: list[dict[str, Any]]) -> None:
    phrase = describe.describe_schedule(phases(documents))
    parts = phrase.split(", then ")
    assert len(parts) == len(documents)
    assert "\n" not in phrase
    assert "None" not in phrase
    for part, document in zip(parts, documents, strict=True):
        if "steps" in document:
            assert formatting.pluralize(document["steps"], "step") in part


@pytest.mark.parametrize(
    ("documents", "phrase"),
    [
        (
            [{"type": "Warmup", "steps": 20}, {"type": "CosineAnnealing", "cycles": 3}],
            "warmup 20 steps, then cosine ×3",
        ),
        ([{"type": "Warmup", "fraction": 0.03, "startFactor": 0.1}], "warmup 3% from 10%"),
        (
            [{"type": "Constant", "epochs": 1.0}, {"type": "TimeDecay", "rate": 0.5}],
            "constant for 1 epoch, then time decay 0.5 per epoch",
        ),
        ([{"type": "StepDecay", "factor": 0.1, "milestones": [2.0, 4.5]}], "×0.1 at epochs 2, 4.5"),
        ([{"type": "StepDecay", "factor": 0.5, "everyEpochs": 1.0}], "×0.5 every epoch"),
        (
            [{"type": "ExponentialDecay", "gamma": 0.9, "staircase": True, "unit": "Epoch"}],
            "exponential ×0.9 per epoch (staircase)",
        ),
        (
            [{"type": "CosineAnnealing", "periodSteps": 50, "periodMultiplier": 2, "minFactor": 0.01}],
            "cosine every 50 steps (each ×2) to 1%",
        ),
        (
            [{"type": "LinearDecay", "epochs": 2.0, "endFactor": 0.1}, {"type": "PolynomialDecay", "power": 2.0}],
            "linear to 10% for 2 epochs, then polynomial of power 2 to 0%",
        ),
        ([{"type": "InverseSqrt", "timescaleSteps": 1_000}], "inverse square root over 1,000 steps"),
        ([{"type": "Plateau", "patience": 2}], "×0.1 after 3 evaluations without improvement"),
    ],
)
def test_schedule_description(documents: list[dict[str, Any]], phrase: str) -> None:
    assert describe.describe_schedule(phases(documents)) == phrase


def test_optimizer_description_lists_settings_that_are_not_defaults() -> None:
    spec = {"type": "Muon", "learningRate": 0.1, "nesterov": False, "nsSteps": 4, "adjustLrFn": "match_rms_adamw"}
    muon: Optimizer = TypeAdapter(Optimizer).validate_python(spec)
    assert describe.describe_optimizer(muon) == "nesterov=false, nsSteps=4, adjustLrFn=match_rms_adamw"


@given(st.integers(0, 10**15))
def test_formatted_count_is_short_and_close(count: int) -> None:
    text = formatting.format_count(count)
    unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert len(text) <= 6
    assert math.isclose(float(text.rstrip("KMBT")) * unit, count, rel_tol=0.006)


@given(st.floats(1e-9, 1e3))
def test_formatted_number_parses_to_the_same_value(value: float) -> None:
    assert math.isclose(float(formatting.format_number(value)), value, rel_tol=0.006)


@given(st.lists(st.booleans(), max_size=30))
def test_frozen_spans_cover_exactly_the_frozen_steps(frozen: list[bool]) -> None:
    covered = [
        step
        for start, end in plots.frozen_spans(range(1, len(frozen) + 1), frozen)
        for step in range(start + 1, end + 1)
    ]
    assert covered == [step for step, is_frozen in enumerate(frozen, start=1) if is_frozen]


@given(st.integers(1, 20_000))
def test_downsampling_keeps_the_ends(length: int) -> None:
    kept = plots.downsample(range(length))
    assert (kept[0], kept[-1]) == (0, length - 1)
    assert len(kept) <= plots.MAX_POINTS + 1
    assert kept == sorted(set(kept))


def test_log_has_a_step_every_few_seconds_and_the_last() -> None:
    stream, now = io.StringIO(), 0.0
    log = console.PlainDisplay(stream, clock=lambda: now)
    for step in range(1, 101):
        log.on_step_end(record(step))
        now += 0.5
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert "step 100/100" in lines[-1]
    assert "loss=2.0000  lr[visual]=1.00e-03  lr[textual]=frozen" in lines[0]
    assert "\x1b" not in stream.getvalue()


def record(step: int) -> StepRecord:
    completion = datetime.now(UTC) + timedelta(seconds=90)
    rates, norms = {"visual": 1e-3, "textual": 0.0}, {"visual": 1.0, "textual": 0.0}
    frozen = {"visual": False, "textual": True}
    return StepRecord(step, 100, step / 50, 2.0, rates, norms, frozen, 50.0, 0.5, completion)


def test_plots_an_empty_history() -> None:
    assert plots.plot_training(plots.History.from_records([]), "empty").axes
