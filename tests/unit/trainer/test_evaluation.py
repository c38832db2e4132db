"""Best evaluation, early stopping and evaluation intervals, from the history alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.defaults import EffectiveEvaluation
from finetune_api.evaluation import Interval
from finetune_trainer.training.evaluation import HistoryEntry, MetricTracker, describe_nonfinite_metrics, is_due


def history(*values: float) -> list[HistoryEntry]:
    return [HistoryEntry(step, {"eval/loss": value}) for step, value in enumerate(values)]


def metric_tracker(direction: str = "Minimize", **early_stopping: float) -> MetricTracker:
    early = {"earlyStopping": early_stopping} if early_stopping else {}
    return MetricTracker(EffectiveEvaluation.model_validate({"metric": "eval/loss", "direction": direction, **early}))


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [
        ("Minimize", [0.0, 3.0, 1.0, 2.0], 2),
        ("Maximize", [9.0, 3.0, 1.0, 2.0], 1),
        ("Minimize", [0.0, 1.0, 1.0], 1),
        ("Minimize", [0.0, math.nan, 5.0], 2),
        ("Maximize", [0.0, math.nan, 5.0, math.nan], 2),
    ],
)
def test_best_is_never_the_baseline_and_the_first_of_equals(direction: str, values: list[float], best: int) -> None:
    entry = metric_tracker(direction).best(history(*values))
    assert entry is not None
    assert entry.step == best


def test_no_best_before_the_first_step() -> None:
    assert metric_tracker().best(history(1.0)) is None
    assert metric_tracker().best([]) is None


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([0.0, 5.0, 4.0, 3.0], False),
        ([0.0, 5.0, 6.0], False),
        ([0.0, 5.0, 6.0, 5.0], True),
        ([0.0, 5.0, 6.0, 4.0, 6.0], False),
        ([0.0, 5.0, 4.95, 4.92], True),
        ([0.0, math.nan], False),
        ([0.0, math.nan, math.nan], True),  # not finite from the first evaluation
        ([math.nan, math.inf, 5.0, 4.0], False),
        ([0.0, math.nan, 5.0, math.nan], False),
        ([0.0, 5.0, math.nan, math.nan], True),
        ([0.0, 5.0, math.nan, 4.0, math.nan], False),
    ],
)
def test_early_stopping_counts_evaluations_without_improvement(values: list[float], stops: bool) -> None:
    assert metric_tracker(patience=2, minDelta=0.1).should_stop_early(history(*values)) is stops


def test_eval_history_is_lower_is_better_and_nan_is_worst() -> None:
    values = history(3.0, math.nan, -math.inf, 1.0)
    assert metric_tracker("Minimize").eval_history(values) == [(0, 3.0), (1, math.inf), (2, math.inf), (3, 1.0)]
    assert metric_tracker("Maximize").eval_history(values) == [(0, -3.0), (1, math.inf), (2, math.inf), (3, -1.0)]


@pytest.mark.parametrize(
    ("values", "never"),
    [([], False), ([math.nan], False), ([0.0, math.nan, math.inf], True), ([0.0, math.nan, 1.0], False)],
)
def test_metric_that_was_never_finite_after_the_first_step(values: list[float], never: bool) -> None:
    assert metric_tracker().is_never_finite(history(*values)) is never
    assert (metric_tracker().best(history(*values)) is None) is (never or len(values) < 2)


def test_metrics_that_are_not_finite_are_named() -> None:
    metrics = {"eval/loss": math.nan, "eval/perplexity": math.inf, "eval/accuracy": 0.5}
    assert describe_nonfinite_metrics(metrics) == "eval/loss is nan, eval/perplexity is inf"
    assert describe_nonfinite_metrics({"eval/loss": 1.0}) == ""


def test_no_early_stopping_by_default() -> None:
    assert not metric_tracker().should_stop_early(history(*range(100)))


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (Interval(steps=4), [4, 8, 12]),
        (Interval(epochs=1.0), [5, 10]),
        (Interval(epochs=0.5), [2, 5, 8, 10, 12]),
        (Interval(epochs=2.0), [10]),
        (Interval(epochs=0.1), list(range(1, 13))),
    ],
)
def test_is_due(every: Interval, expected: list[int]) -> None:
    assert [step for step in range(1, 13) if is_due(every, step, steps_per_epoch=5)] == expected


@given(st.floats(0.001, 40.0), st.integers(1, 500))
def test_periods_do_not_drift(epochs: float, steps_per_epoch: int) -> None:
    """The k-th event is at round(k * period), or at every step if the period is at most one step."""
    steps, every = 1000, Interval(epochs=epochs)
    period = max(1.0, epochs * steps_per_epoch)
    expected = [round(k * period) for k in range(1, steps + 1) if round(k * period) <= steps]
    assert [step for step in range(1, steps + 1) if is_due(every, step, steps_per_epoch)] == expected


@pytest.mark.parametrize(
    ("direction", "values", "expected"),
    [
        ("Minimize", [2.0, 3.0, 1.0], True),
        ("Minimize", [2.0, 3.0, 2.0], False),
        ("Maximize", [2.0, 1.0], False),
        ("Minimize", [2.0, math.nan], False),
        ("Minimize", [math.nan, 1.0], True),
        ("Minimize", [2.0], True),
        ("Minimize", [], True),
    ],
)
def test_is_better_than_before(direction: str, values: list[float], expected: bool) -> None:
    assert metric_tracker(direction).is_better_than_before(history(*values)) is expected
