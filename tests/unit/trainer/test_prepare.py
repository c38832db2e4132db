"""What `plan` and `run` check before any weights are loaded."""

import pytest

from finetune_trainer.errors import UserError
from finetune_trainer.planning.prepare import check_metric

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
