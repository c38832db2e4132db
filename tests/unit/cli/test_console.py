"""What the displays of a run show for progress, and for numbers that are not finite."""

import math
from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from finetune_trainer.callbacks import EvaluationRecord, StepRecord
from finetune_trainer.cli.console import LOG_INTERVAL, STOPPING, PlainDisplay, TerminalDisplay, render_text, sparkline
from finetune_trainer.cli.plan_table import DASH
from finetune_trainer.cli.summary import result_table
from finetune_trainer.formatting import format_number
from finetune_trainer.plan import RunPlan
from finetune_trainer.planning.prepare import prepare
from unit.trainer import tiny

BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    claims = tmp_path_factory.mktemp("claims")
    tiny.write_classifier(claims / "models" / "bert")
    tiny.write_rows(claims / "data" / "reviews", tiny.reviews(12))
    module = {"name": "all", "parameters": ["*"], "optimizer": {"type": "SGD", "learningRate": 0.1}}
    return prepare(tiny.job("bert", "reviews", modules=[module]), tiny.claim_paths(claims, claims)).plan


def step(value: float) -> StepRecord:
    return StepRecord(1, 4, 0.5, value, {"all": 0.1}, {"all": value}, {"all": False}, 1.0, 1.0, skipped=True)


@pytest.mark.parametrize("value", BAD)
def test_numbers_that_are_not_finite_are_shown(plan: RunPlan, value: float) -> None:
    stream = StringIO()
    terminal = TerminalDisplay(Console(file=stream, force_terminal=True, width=100))
    plain = PlainDisplay(stream)
    for display in (terminal, plain):
        display.on_train_begin(plan, 0)
        for loss in (1.0, value, 2.0):
            display.on_step_end(step(loss))
        display.on_evaluate(EvaluationRecord(1, 0.5, {"eval/loss": value}, best=False))
        display.on_step_end(step(value))
    assert format_number(value) in render_text(terminal._view())
    terminal.close()
    assert f"loss={value:.4f}" in stream.getvalue()
    assert sparkline([1.0, value, 2.0]) == "▁ █"
    assert sparkline([value]) == " "


def test_summary_without_a_finite_value() -> None:
    table = result_table({"step": 0, "eval/loss": 1.0}, {"step": 3, "eval/loss": None}, "eval/loss", {"step": 3})
    assert render_text(table).splitlines()[-1].split() == ["eval/loss", "1.0000", DASH, DASH, DASH]


def test_log_has_progress_at_most_every_few_seconds() -> None:
    stream, times = StringIO(), iter([0.0, 1.0, LOG_INTERVAL, LOG_INTERVAL + 1])
    display = PlainDisplay(stream, lambda: next(times))
    for done in (10, 20, 30, 100):
        display.on_progress("scanning data.train", done, 100)
    lines = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == ["scanning data.train  10/100 (10%)", "scanning data.train  30/100 (30%)"]


@pytest.fixture
def terminal() -> Iterator[TerminalDisplay]:
    display = TerminalDisplay(Console(file=StringIO(), force_terminal=True, width=100))
    yield display
    display.close()


def test_terminal_shows_progress_before_and_during_training(terminal: TerminalDisplay, plan: RunPlan) -> None:
    terminal.on_progress("scanning data.train", 5, 0)
    assert "scanning data.train" in render_text(terminal._view())
    terminal.on_progress("scanning data.train", 7, 7)
    terminal.on_progress("loading", 1, 2)
    terminal.on_train_begin(plan, 0)
    assert "loading" not in render_text(terminal._view())
    terminal.on_step_end(step(1.0))
    terminal.on_progress("writing checkpoint", 1, 3)
    view = render_text(terminal._view())
    assert "step 1/4" in view
    assert "writing checkpoint" in view and "1/3 (33%)" in view


@pytest.mark.parametrize("is_stopping", [False, True])
def test_terminal_acknowledges_a_request_to_stop(is_stopping: bool, plan: RunPlan) -> None:
    display = TerminalDisplay(Console(file=StringIO(), force_terminal=True, width=100), lambda: is_stopping)
    display.on_train_begin(plan, 0)
    display.on_step_end(step(1.0))
    assert (STOPPING in render_text(display._view())) == is_stopping
    display.close()
