"""The metrics page of a trainer is parsed leniently, with limits on names, values and rows."""

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


def test_parses_all_metrics() -> None:
    snapshot = page(
        "# HELP finetune_loss The loss.",
        "finetune_planned_steps 20",
        "finetune_skipped_steps 2",
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
    assert snapshot and snapshot.progress.percentage == 25.0
    assert snapshot.progress.estimated_completion_time == datetime.fromtimestamp(1_800_000_000, UTC)
    assert snapshot.progress.summary == "5/20 (25%)"
    assert snapshot.progress.non_finite_steps == 2
    assert {it.name: it.value for it in snapshot.metrics} == {"train/loss": 0.5, "eval/accuracy": 0.75}
    assert snapshot.best == BestEvaluation(metric="eval/accuracy", value=0.8, step=4)
    (visual,) = snapshot.modules
    assert (visual.learning_rate, visual.gradient_norm, visual.optimizer, visual.frozen) == (1e-3, 2.0, "SGD", True)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_drops_values_that_are_not_finite(value: str) -> None:
    snapshot = page(f"finetune_loss {value}")
    assert snapshot and not snapshot.metrics


@pytest.mark.parametrize("text", ["", "no metrics here", "finetune_step", "finetune_step 1e300", '{"json": 1}', "\0"])
def test_returns_none_for_a_page_without_step(text: str) -> None:
    assert parse_metrics_page(text, 1, NOW) is None


def test_drops_unknown_metrics_and_rows_beyond_the_limit() -> None:
    rows = [f'finetune_learning_rate{{module="m{number}"}} 1' for number in range(1000)]
    snapshot = page("evil_metric 1", *rows)
    assert snapshot and len(snapshot.modules) == MAX_ROWS
    assert "evil" not in str(snapshot)


@given(st.text())
def test_never_raises(text: str) -> None:
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
def test_returns_none_for_an_implausible_step(step: str) -> None:
    assert parse_metrics_page(f"finetune_step {step}\nfinetune_planned_steps 20\n", 1, NOW) is None
