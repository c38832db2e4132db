"""The results that `finetune run` prints, from the metrics in run.json."""

from finetune_trainer.cli.console import render_text
from finetune_trainer.cli.describe import describe_metrics
from finetune_trainer.cli.summary import result_table


def test_change_of_a_metric_that_was_not_finite_is_left_out() -> None:
    before = {"step": 0, "eval/loss": None, "eval/accuracy": 0.5}
    after = {"step": 4, "eval/loss": 0.25, "eval/accuracy": None}
    text = render_text(result_table(before, after, "eval/accuracy", {"step": 4, "test/accuracy": None}))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("eval/")}
    assert rows == {"eval/accuracy": ["0.5000", "–", "–", "–"], "eval/loss": ["–", "0.2500", "–", "–"]}


def test_metric_of_the_test_set_that_was_not_finite_is_shown() -> None:
    assert describe_metrics({"test/loss": None, "test/accuracy": 0.5}) == "loss=nan  accuracy=0.5000"
