"""The best, patience and intervals, from the history alone."""

import math

import pytest

from finetune_api.defaults import EffectiveEvaluation
from finetune_api.evaluation import Interval
from finetune_trainer.errors import UserError
from finetune_trainer.training.evaluation import Evaluation, Judge, check_metric, is_due


def history(*values: float) -> list[Evaluation]:
    return [Evaluation(step, {"eval/loss": value}) for step, value in enumerate(values)]


def judge(direction: str = "Minimize", **stopping: float) -> Judge:
    early = {"earlyStopping": stopping} if stopping else {}
    return Judge(EffectiveEvaluation.model_validate({"metric": "eval/loss", "direction": direction, **early}))


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
def test_the_best_is_never_the_start_and_of_equals_the_first(direction: str, values: list[float], best: int) -> None:
    found = judge(direction).best(history(*values))
    assert found is not None
    assert found.step == best


def test_there_is_no_best_before_the_first_step() -> None:
    assert judge().best(history(1.0)) is None
    assert judge().best([]) is None


@pytest.mark.parametrize(
    ("values", "exhausted"),
    [
        ([0.0, 5.0, 4.0, 3.0], False),
        ([0.0, 5.0, 6.0], False),
        ([0.0, 5.0, 6.0, 5.0], True),
        ([0.0, 5.0, 6.0, 4.0, 6.0], False),
        ([0.0, 5.0, 4.95, 4.92], True),
    ],
)
def test_patience_counts_evaluations_without_improvement(values: list[float], exhausted: bool) -> None:
    assert judge(patience=2, minDelta=0.1).is_exhausted(history(*values)) is exhausted


def test_a_schedule_follows_values_of_which_lower_is_better_and_nan_is_the_worst() -> None:
    values = history(3.0, math.nan, -math.inf, 1.0)
    assert judge("Minimize").eval_history(values) == [(0, 3.0), (1, math.inf), (2, math.inf), (3, 1.0)]
    assert judge("Maximize").eval_history(values) == [(0, -3.0), (1, math.inf), (2, math.inf), (3, -1.0)]


def test_without_early_stopping_patience_is_endless() -> None:
    assert not judge().is_exhausted(history(*range(100)))


def test_a_metric_that_is_not_measured_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'eval/loss' is not measured here; did you mean 'eval/los'"):
        check_metric(judge(), ("eval/los", "eval/accuracy"))


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
def test_intervals(every: Interval, expected: list[int]) -> None:
    assert [step for step in range(1, 13) if is_due(every, step, steps_per_epoch=5)] == expected
