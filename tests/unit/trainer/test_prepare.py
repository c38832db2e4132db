"""What `plan` and `run` check before any weights are loaded."""

from pathlib import Path

import pytest

from finetune_trainer.errors import UserError
from finetune_trainer.planning.prepare import check_metric, with_checked_defaults
from finetune_trainer.planning.preview import preview_run
from unit.trainer import tiny

METRICS = ("eval/loss", "eval/accuracy")


@pytest.mark.parametrize("metric", METRICS)
def test_accepts_a_metric_of_the_task(metric: str) -> None:
    check_metric(metric, METRICS)


@pytest.mark.parametrize(("metric", "hint"), [("eval/los", "; did you mean 'eval/loss'?"), ("eval/f1", "")])
def test_unknown_metric_is_answered_with_the_available_ones(metric: str, hint: str) -> None:
    with pytest.raises(UserError) as raised:
        check_metric(metric, METRICS)
    assert str(raised.value) == (
        f"evaluation.metric: unknown metric '{metric}'; available: eval/loss, eval/accuracy{hint}"
    )


def test_direction_comes_from_the_table_of_metrics() -> None:
    for metric, direction in (("eval/loss", "Minimize"), ("eval/accuracy", "Maximize")):
        job = tiny.job("bert", "reviews", evaluation={"metric": metric})
        assert with_checked_defaults(job, "SequenceClassification", METRICS).spec.evaluation.direction == direction


def test_metric_outside_the_table_needs_a_direction() -> None:
    available = (*METRICS, "eval/word_error_rate")
    job = tiny.job("bert", "reviews", evaluation={"metric": "eval/word_error_rate"})
    with pytest.raises(
        UserError,
        match=r"^evaluation\.direction: required for metric 'eval/word_error_rate'.*set it to Minimize or Maximize$",
    ):
        with_checked_defaults(job, "SequenceClassification", available)
    job = tiny.job("bert", "reviews", evaluation={"metric": "eval/word_error_rate", "direction": "Maximize"})
    assert with_checked_defaults(job, "SequenceClassification", available).spec.evaluation.direction == "Maximize"


@pytest.mark.parametrize("direction", [{}, {"direction": "Maximize"}])
def test_metric_that_the_task_does_not_compute_is_refused_with_any_direction(direction: dict[str, str]) -> None:
    job = tiny.job("bert", "reviews", evaluation={"metric": "eval/perplexity", **direction})
    with pytest.raises(UserError, match=r"^evaluation\.metric: unknown metric 'eval/perplexity'; available: eval/loss"):
        with_checked_defaults(job, "SequenceClassification", METRICS)


def test_plan_of_a_metric_without_direction_is_refused_not_a_crash(claims: Path, out: Path) -> None:
    job = tiny.job("bert", "reviews", evaluation={"metric": "eval/word_error_rate"})
    preview = preview_run(job, tiny.claim_paths(claims, out))
    assert "evaluation.metric: unknown metric 'eval/word_error_rate'" in str(preview.error)
