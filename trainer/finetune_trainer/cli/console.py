"""What a run shows while it is running: a live display on a terminal, timestamped lines in a log.

A log gets steps at most every few seconds, every evaluation, and never a control code: it is read with `kubectl logs`
and stored by log collectors.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import Report
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.cli.describe import describe_metrics
from finetune_trainer.cli.plan_output import render_plan
from finetune_trainer.cli.plan_table import module_color
from finetune_trainer.formatting import format_duration, format_number, pluralize
from finetune_trainer.plan import RunPlan

LOG_INTERVAL = 5.0
"""Shortest time between two steps in a log, in seconds."""
LOG_WIDTH = 140
STOPPING = "stopping after this step, with a checkpoint; press Ctrl-C again to stop now, without one"
SPARKLINE = "▁▂▃▄▅▆▇█"


def render_text(view: RenderableType, width: int = LOG_WIDTH) -> str:
    """A renderable as plain text, without colors and control codes."""
    stream = StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(view)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())


def sparkline(values: Sequence[float]) -> str:
    """Values as small bars, scaled between the lowest and the highest; those that are not finite are gaps.

    >>> sparkline([1, 2, float("nan"), 3, 8])
    '▁▂ ▃█'
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0), max(finite, default=0)
    scale = (len(SPARKLINE) - 1) / (high - low) if 0 < high - low < math.inf else 0
    return "".join(SPARKLINE[round((value - low) * scale)] if math.isfinite(value) else " " for value in values)


def format_time_left(record: StepRecord, now: datetime) -> str:
    """The estimated time to completion; empty while there is no estimate."""
    if record.estimated_completion_time is None:
        return ""
    return format_duration(max(0.0, (record.estimated_completion_time - now).total_seconds())) + " left"


class Display(Callback):
    """A callback with output for the user, which also prints what is not an event of the run."""

    def print_view(self, view: RenderableType) -> None:
        """Print a table or another renderable."""

    def print_line(self, text: str) -> None:
        """Print one line."""


class TerminalDisplay(Display):
    """A live display: progress bar, loss, and one line per module with its learning rate and gradient norm.

    Args:
        console: the terminal.
        is_stopping: whether the run was asked to stop, and will do so after its step.
    """

    def __init__(self, console: Console, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._console = console
        self._is_stopping = is_stopping
        self._live: Live | None = None
        self._plan: RunPlan | None = None
        self._record: StepRecord | None = None
        self._losses: deque[float] = deque(maxlen=40)
        self._evaluating: tuple[int, int] | None = None
        self._activity: tuple[str, int, int] | None = None

    def print_view(self, view: RenderableType) -> None:
        self._console.print(Padding(view, (1, 0)))

    def print_line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def on_message(self, text: str) -> None:
        self._console.print(Text(text, "dim"))

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self._plan = plan
        self.close()
        self._activity = None
        self.print_view(render_plan(plan))
        self._start_live()

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._activity = None if done == total else (activity, done, total)
        if self._live is None and self._activity:
            self._start_live()
        elif self._plan is None and self._activity is None:
            self.close()

    def on_step_end(self, record: StepRecord) -> None:
        self._record = record
        self._evaluating = None
        self._losses.append(record.loss)

    def on_prediction_step(self, done: int, total: int) -> None:
        self._evaluating = (done, total)

    def on_evaluate(self, record: EvaluationRecord) -> None:
        self._evaluating = None
        line = Text.assemble(
            ("evaluation ", "bold"),
            (f"epoch {record.epoch:<5.2f} step {record.step:<6,} ", "dim"),
            describe_metrics(record.metrics),
        )
        self._console.print(line + Text("  ★ best so far" if record.best else "", "bold green"))

    def on_test(self, record: TestRecord) -> None:
        self._evaluating = None
        self._console.print(Text.assemble(("test set ", "bold"), describe_metrics(record.metrics)))

    def on_save(self, record: CheckpointRecord) -> None:
        self._console.print(Text(f"checkpoint at step {record.step:,}", "dim"))

    def on_run_end(self, report: Report) -> None:
        self.close()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _start_live(self) -> None:
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=5, transient=True)
        self._live.start()

    def _view(self) -> RenderableType:
        lines = (self._evaluation_line(), self._activity_line(), self._stopping_line())
        activities = [line for line in lines if line is not None]
        if self._plan is None or self._record is None:
            return Group(*activities) if activities else Text("starting …", "dim")
        parts = [self._bar(self._record), self._modules(self._plan, self._record), *activities]
        return Padding(Group(*parts), (1, 0, 0, 0))

    def _bar(self, record: StepRecord) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        done = record.step / max(1, record.planned_steps)
        line.add_row(
            Text(f"step {record.step:,}/{record.planned_steps:,}", "bold"),
            ProgressBar(total=1, completed=done, width=36, complete_style="#4477aa", finished_style="#228833"),
            f"{done:4.0%}",
            Text(f"epoch {record.epoch:.2f}", "dim"),
            Text(f"{record.samples_per_second:.0f} samples/s", "dim"),
            Text(format_time_left(record, datetime.now(UTC)), "bold"),
        )
        return line

    def _modules(self, plan: RunPlan, record: StepRecord) -> RenderableType:
        grid = Table.grid(padding=(0, 3))
        loss = Text("step skipped: not finite", "red") if record.skipped else Text(f"{record.loss:.4f}", "bold")
        grid.add_row(Text("loss", "bold"), loss, Text(sparkline(self._losses), "#4477aa"))
        for index, module in enumerate(plan.modules):
            grid.add_row(Text(module.name, f"bold {module_color(index)}"), *_module_cells(module.name, record, plan))
        return grid

    def _evaluation_line(self) -> RenderableType | None:
        if self._evaluating is None:
            return None
        done, total = self._evaluating
        return _progress_line("evaluating", done, total, f"{done:,}/{pluralize(total, 'batch', 'batches')}")

    def _stopping_line(self) -> RenderableType | None:
        # Polled here, because a signal handler must not print.
        return Text(STOPPING, "yellow") if self._is_stopping() else None

    def _activity_line(self) -> RenderableType | None:
        return None if self._activity is None else _progress_line(*self._activity, format_progress(*self._activity[1:]))


def _progress_line(activity: str, done: int, total: int, text: str) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=total or None, completed=done, width=36, complete_style="#ee7733")
    line.add_row(Text(activity), bar, text)
    return line


def format_progress(done: int, total: int) -> str:
    """How much of an activity is done; a total of 0 is unknown.

    >>> format_progress(1200, 4800), format_progress(1200, 0)
    ('1,200/4,800 (25%)', '1,200')
    """
    return f"{done:,}/{total:,} ({done / total:.0%})" if total else f"{done:,}"


def _module_cells(name: str, record: StepRecord, plan: RunPlan) -> tuple[Text, Text]:
    if not record.frozen.get(name):
        rate, norm = record.learning_rates.get(name, 0.0), record.gradient_norms.get(name)
        return Text(f"lr={rate:.2e}"), Text("" if norm is None else f"gradient norm {format_number(norm)}")
    window = next(module.window for module in plan.modules if module.name == name)
    until = f"until step {window.start:,}" if window.length and record.step < window.start else ""
    return Text("frozen", "dim"), Text(until, "dim")


class PlainDisplay(Display):
    """Timestamped lines for a log."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = self._last_progress = -LOG_INTERVAL

    def print_view(self, view: RenderableType) -> None:
        self._stream.write(f"\n{render_text(view)}\n\n")
        self._stream.flush()

    def print_line(self, text: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._stream.write(f"{now}  {text}\n")
        self._stream.flush()

    def on_message(self, text: str) -> None:
        self.print_line(text)

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self.print_line("plan:")
        self.print_view(render_plan(plan))

    def on_progress(self, activity: str, done: int, total: int) -> None:
        now = self._clock()
        if now - self._last_progress >= LOG_INTERVAL and done != total:
            self._last_progress = now
            self.print_line(f"{activity}  {format_progress(done, total)}")

    def on_step_end(self, record: StepRecord) -> None:
        now = self._clock()
        if now - self._last < LOG_INTERVAL and record.step != record.planned_steps:
            return
        self._last = now
        self.print_line("  ".join(filter(None, _step_fields(record))))

    def on_evaluate(self, record: EvaluationRecord) -> None:
        fields = (
            f"evaluation at step {record.step:,}",
            f"epoch {record.epoch:.2f}",
            describe_metrics(record.metrics),
            "(best so far)" if record.best else "",
        )
        self.print_line("  ".join(filter(None, fields)))

    def on_test(self, record: TestRecord) -> None:
        self.print_line(f"test set  {describe_metrics(record.metrics)}")

    def on_save(self, record: CheckpointRecord) -> None:
        self.print_line(f"checkpoint at step {record.step:,}: {record.path}")


def _step_fields(record: StepRecord) -> Sequence[str]:
    return (
        f"step {record.step:,}/{record.planned_steps:,}",
        f"epoch {record.epoch:.2f}",
        "skipped: loss or gradient is not finite" if record.skipped else f"loss={record.loss:.4f}",
        *(_learning_rate_field(name, record) for name in record.learning_rates),
        f"{record.samples_per_second:.1f} samples/s",
        format_time_left(record, datetime.now(UTC)),
    )


def _learning_rate_field(module: str, record: StepRecord) -> str:
    value = "frozen" if record.frozen.get(module) else f"{record.learning_rates[module]:.2e}"
    return f"lr[{module}]={value}"
