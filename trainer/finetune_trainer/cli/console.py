"""What a person sees while a run goes on: a live display on a terminal, timestamped lines in a log.

A log gets at most one line per few seconds for steps, every evaluation, and never a control code: it is read with
`kubectl logs` and kept by log collectors.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from finetune_trainer.cli.plan_table import (
    colour,
    duration,
    facts_grid,
    metrics_phrase,
    number,
    plan_table,
    plural,
    rows_of,
    summary,
)
from finetune_trainer.plan import RunPlan

LOG_INTERVAL = 5.0
LOG_WIDTH = 140
SPARKS = "▁▂▃▄▅▆▇█"


def plan_view(plan: RunPlan) -> RenderableType:
    """The effective plan: the run as a whole, then its modules."""
    left_alone = len(plan.unmatched)
    note = Text(f"{plural(left_alone, 'tensor')} in no module stay frozen (unmatched: Freeze)", "yellow")
    return Group(facts_grid(summary(plan)), Text(), plan_table(rows_of(plan)), *([note] if left_alone else []))


def rendered(view: RenderableType, width: int = LOG_WIDTH) -> str:
    """A view as plain text, without colours and control codes."""
    stream = StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(view)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())


def sparkline(values: Sequence[float]) -> str:
    """Values as little bars, lowest to highest.

    >>> sparkline([1, 2, 3, 8])
    '▁▂▃█'
    """
    low, high = min(values, default=0), max(values, default=0)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0
    return "".join(SPARKS[round((value - low) * scale)] for value in values)


def time_left(record: StepRecord, now: datetime) -> str:
    """How long the run still takes, as far as it can be told."""
    if record.estimated_completion_time is None:
        return ""
    return duration(max(0.0, (record.estimated_completion_time - now).total_seconds())) + " left"


class Display(Callback):
    """A callback that a person reads, to whom something can be said beside the run's own events."""

    def show(self, view: RenderableType) -> None:
        """Show a table or the like."""

    def say(self, text: str) -> None:
        """Say one line."""


class TerminalDisplay(Display):
    """A live display: bar, loss, and one line per module with its rate and gradient norm."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._plan: RunPlan | None = None
        self._record: StepRecord | None = None
        self._losses: deque[float] = deque(maxlen=40)
        self._evaluating: tuple[int, int] | None = None

    def show(self, view: RenderableType) -> None:
        self._console.print(Padding(view, (1, 0)))

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def on_message(self, text: str) -> None:
        self._console.print(Text(text, "dim"))

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self._plan = plan
        self.show(plan_view(plan))
        self._live = Live(get_renderable=self._view, console=self._console, refresh_per_second=5, transient=True)
        self._live.start()

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
            metrics_phrase(record.metrics),
        )
        self._console.print(line + Text("  ★ best so far" if record.best else "", "bold green"))

    def on_test(self, record: TestRecord) -> None:
        self._evaluating = None
        self._console.print(Text.assemble(("test set ", "bold"), metrics_phrase(record.metrics)))

    def on_save(self, record: CheckpointRecord) -> None:
        self._console.print(Text(f"checkpoint at step {record.step:,}", "dim"))

    def on_run_end(self, report: Report) -> None:
        self.close()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _view(self) -> RenderableType:
        if self._plan is None or self._record is None:
            return self._evaluation_line() or Text("starting …", "dim")
        evaluation = self._evaluation_line()
        parts = [
            self._bar(self._record),
            self._modules(self._plan, self._record),
            *([evaluation] if evaluation else []),
        ]
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
            Text(time_left(record, datetime.now(UTC)), "bold"),
        )
        return line

    def _modules(self, plan: RunPlan, record: StepRecord) -> RenderableType:
        grid = Table.grid(padding=(0, 3))
        loss = Text("skipped: not finite", "red") if record.skipped else Text(f"{record.loss:.4f}", "bold")
        grid.add_row(Text("loss", "bold"), loss, Text(sparkline(self._losses), "#4477aa"))
        for position, module in enumerate(plan.modules):
            grid.add_row(Text(module.name, f"bold {colour(position)}"), *_module_cells(module.name, record, plan))
        return grid

    def _evaluation_line(self) -> RenderableType | None:
        if self._evaluating is None:
            return None
        done, total = self._evaluating
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, total), completed=done, width=36, complete_style="#ee7733")
        line.add_row(Text("evaluating"), bar, f"{done:,}/{plural(total, 'batch').removesuffix('s')}")
        return line


def _module_cells(name: str, record: StepRecord, plan: RunPlan) -> tuple[Text, Text]:
    if not record.frozen.get(name):
        rate, norm = record.learning_rates.get(name, 0.0), record.gradient_norms.get(name)
        return Text(f"rate {rate:.2e}"), Text("" if norm is None else f"gradient norm {number(norm)}")
    window = next(module.window for module in plan.modules if module.name == name)
    until = f"until step {window.start:,}" if window.length and record.step < window.start else ""
    return Text("frozen", "dim"), Text(until, "dim")


class PlainDisplay(Display):
    """Timestamped lines for a log."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = -LOG_INTERVAL

    def show(self, view: RenderableType) -> None:
        self._stream.write(f"\n{rendered(view)}\n\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._stream.write(f"{now}  {text}\n")
        self._stream.flush()

    def on_message(self, text: str) -> None:
        self.say(text)

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self.say("the plan:")
        self.show(plan_view(plan))

    def on_step_end(self, record: StepRecord) -> None:
        now = self._clock()
        if now - self._last < LOG_INTERVAL and record.step != record.planned_steps:
            return
        self._last = now
        self.say("  ".join(filter(None, _step_words(record))))

    def on_evaluate(self, record: EvaluationRecord) -> None:
        words = (
            f"evaluation at step {record.step:,}",
            f"epoch {record.epoch:.2f}",
            metrics_phrase(record.metrics),
            "(best so far)" if record.best else "",
        )
        self.say("  ".join(filter(None, words)))

    def on_test(self, record: TestRecord) -> None:
        self.say(f"test set  {metrics_phrase(record.metrics)}")

    def on_save(self, record: CheckpointRecord) -> None:
        self.say(f"checkpoint at step {record.step:,}: {record.path}")


def _step_words(record: StepRecord) -> Sequence[str]:
    return (
        f"step {record.step:,}/{record.planned_steps:,}",
        f"epoch {record.epoch:.2f}",
        "skipped: loss or gradient is not finite" if record.skipped else f"loss {record.loss:.4f}",
        *(f"{name} {_rate(name, rate, record.frozen)}" for name, rate in record.learning_rates.items()),
        f"{record.samples_per_second:.1f} samples/s",
        time_left(record, datetime.now(UTC)),
    )


def _rate(name: str, rate: float, frozen: Mapping[str, bool]) -> str:
    return "frozen" if frozen.get(name) else f"{rate:.2e}"
