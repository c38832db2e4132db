"""The trainer's page is read with limits: on its size, on the time it takes, and on what it may say."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.status import BestEvaluation
from finetune_operator.core.progress import MAX_ROWS, ProgressSnapshot, parse_metrics_page

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def page(*lines: str) -> ProgressSnapshot | None:
    return parse_metrics_page("\n".join(("finetune_step 5", *lines)) + "\n", 1, NOW)


def test_a_page_is_understood() -> None:
    reading = page(
        "# HELP finetune_loss The loss.",
        "finetune_planned_steps 20",
        "finetune_loss 0.5",
        'finetune_evaluation{metric="accuracy"} 0.75',
        'finetune_best_evaluation{metric="accuracy"} 0.8',
        'finetune_best_evaluation_step{metric="accuracy"} 4',
        'finetune_learning_rate{module="visual"} 1e-3',
        'finetune_gradient_norm{module="visual"} 2',
        'finetune_module_trainable_parameters{module="visual"} 0',
        'finetune_module_info{module="visual",optimizer="SGD"} 1',
        "finetune_estimated_completion_timestamp_seconds 1.8e9",
    )
    assert reading and reading.progress.percentage == 25.0
    assert reading.progress.estimated_completion_time == datetime.fromtimestamp(1_800_000_000, UTC)
    assert reading.progress.summary == "5/20 (25%)"
    assert {it.name: it.value for it in reading.metrics} == {"train/loss": 0.5, "eval/accuracy": 0.75}
    assert reading.best == BestEvaluation(metric="eval/accuracy", value=0.8, step=4)
    (visual,) = reading.modules
    assert (visual.learning_rate, visual.gradient_norm, visual.optimizer, visual.frozen) == (1e-3, 2.0, "SGD", True)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_not_a_number_is_left_out(value: str) -> None:
    reading = page(f"finetune_loss {value}")
    assert reading and not reading.metrics


@pytest.mark.parametrize("text", ["", "no metrics here", "finetune_step", "finetune_step 1e300", '{"json": 1}', "\0"])
def test_what_is_no_page_is_no_reading(text: str) -> None:
    assert parse_metrics_page(text, 1, NOW) is None


def test_names_that_are_not_on_the_list_and_rows_beyond_the_limit_are_left_out() -> None:
    rows = [f'finetune_learning_rate{{module="m{number}"}} 1' for number in range(1000)]
    reading = page("evil_metric 1", *rows)
    assert reading and len(reading.modules) == MAX_ROWS
    assert "evil" not in str(reading)


@given(st.text())
def test_nothing_that_a_pod_says_is_an_error(text: str) -> None:
    parse_metrics_page("finetune_step 1\nfinetune_loss" + text, 1, NOW)
    parse_metrics_page(text, 1, NOW)


def test_module_without_learning_rate_is_not_frozen_before_the_first_step() -> None:
    snapshot = page(
        'finetune_module_parameters{module="visual"} 100',
        'finetune_module_trainable_parameters{module="visual"} 100',
        'finetune_module_parameters{module="temperature"} 1',
        'finetune_module_trainable_parameters{module="temperature"} 0',
    )
    assert snapshot and {it.name: it.frozen for it in snapshot.modules} == {"visual": False, "temperature": True}
    assert all(it.learning_rate is None for it in snapshot.modules)


@pytest.mark.parametrize("step", ["1e18", "1e300", "1.7e308"])
def test_implausible_step_is_no_snapshot(step: str) -> None:
    assert parse_metrics_page(f"finetune_step {step}\nfinetune_planned_steps 20\n", 1, NOW) is None
