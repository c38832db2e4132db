"""Plots: the schedules of a job before it runs, and the metrics of a run. matplotlib without the state of pyplot.

Figures are built from a plan, or from the records of `metrics.jsonl`; only `save_figure` writes files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from finetune_api.metrics import find_direction
from finetune_trainer.callbacks import EvaluationRecord, StepRecord
from finetune_trainer.cli.describe import describe_optimizer, describe_schedule, describe_steps
from finetune_trainer.cli.plan_table import module_color
from finetune_trainer.formatting import format_number
from finetune_trainer.plan import ModulePlan, SchedulePlan
from finetune_trainer.reporting.metrics_jsonl import MetricsRecord

TEXT_COLOR, MUTED_COLOR, SPINE_COLOR, GRID_COLOR = "#2b2b33", "#84848f", "#c9c9d1", "#ececf1"
METRIC_COLORS = ("#ee7733", "#009988", "#aa4499", "#997700", "#555560")
WIDTH, DPI = 9.6, 150
CAPTION_LENGTH = 130
"""Characters of a caption and of the module's name next to it, which is larger."""
MAX_LEGEND_LENGTH = 70
"""Characters in the labels of a legend in the normal font size."""
T = TypeVar("T")
MAX_POINTS = 4000
"""Longer runs are downsampled; more points than pixels are not visible."""


@dataclass(frozen=True)
class History:
    """The steps and the evaluations of a run, each in order."""

    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]

    @classmethod
    def from_records(cls, records: Iterable[MetricsRecord]) -> History:
        """The history of a run, downsampled if it is long."""
        found = list(records)
        steps = [record for record in found if isinstance(record, StepRecord)]
        evaluations = [record for record in found if isinstance(record, EvaluationRecord)]
        return cls(tuple(downsample(steps)), tuple(evaluations))

    @property
    def step_numbers(self) -> list[int]:
        return [record.step for record in self.steps]

    @property
    def modules(self) -> list[str]:
        return list(self.steps[-1].learning_rates) if self.steps else []

    @property
    def steps_per_epoch(self) -> int:
        last = self.steps[-1] if self.steps else None
        return round(last.step / last.epoch) if last and last.epoch else 0

    def frozen(self, module: str) -> list[bool]:
        return [record.frozen.get(module, False) for record in self.steps]

    def learning_rates(self, module: str) -> list[float]:
        return self._while_trainable(module, [record.learning_rates.get(module, math.nan) for record in self.steps])

    def gradient_norms(self, module: str) -> list[float]:
        return self._while_trainable(module, [record.gradient_norms.get(module, math.nan) for record in self.steps])

    def maximized_metrics(self, metric: str | None) -> list[str]:
        """Evaluation metrics for which higher is better, `metric` first."""
        names = dict.fromkeys(name for one in self.evaluations for name in one.metrics)
        return sorted((name for name in names if find_direction(name) != "Minimize"), key=lambda name: name != metric)

    def _while_trainable(self, module: str, values: Sequence[float]) -> list[float]:
        return [math.nan if frozen else value for frozen, value in zip(self.frozen(module), values, strict=True)]


# Schedules -------------------------------------------------------------------------------------------------------


def plot_schedules(plan: SchedulePlan) -> Figure:
    """The learning rate of every module over the run, one panel each, with epoch lines and shaded frozen spans."""
    heights = [1.0 if module.schedule else 0.22 for module in plan.modules]
    figure = _figure(1.5 + sum(1.6 * height + 0.35 for height in heights))
    panels = _stack(figure, heights)
    for index, (axes, module) in enumerate(zip(panels, plan.modules, strict=True)):
        _schedule_panel(axes, plan, module, module_color(index))
    _step_axis(panels, plan.planned_steps, plan.steps_per_epoch)
    _title(figure, f"{plan.job.name}: learning rates", describe_steps(plan.planned_steps, plan.steps_per_epoch))
    return figure


def _schedule_panel(axes: Axes, plan: SchedulePlan, module: ModulePlan, color: str) -> None:
    window = module.window
    steps = downsample(range(window.start, window.end))
    rates = [module.learning_rate(step) for step in steps]
    axes.plot(steps, rates, color=color, linewidth=1.8, solid_capstyle="round")
    axes.fill_between(steps, rates, color=color, alpha=0.12, linewidth=0)
    frozen = [(0, window.start), (window.end, plan.planned_steps)] if window.length else [(0, plan.planned_steps)]
    for start, end in frozen:
        _shade(axes, start, end, MUTED_COLOR, "frozen")
    _base_rate_axis(axes, module)
    axes.set_title(module.name, loc="left", color=color, fontsize=10.5, fontweight="bold")
    length = max(CAPTION_LENGTH - round(1.3 * len(module.name)), 20)
    axes.set_title(shorten(_caption(module), length, placeholder=" …"), loc="right", color=MUTED_COLOR, fontsize=9)


def _base_rate_axis(axes: Axes, module: ModulePlan) -> None:
    if module.spec.optimizer is None or module.schedule is None:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        return
    base = module.spec.optimizer.learning_rate
    highest = max([base, *(module.learning_rate(step) for step in range(module.window.start, module.window.end))])
    axes.set_ylim(0, highest * 1.08)
    axes.set_yticks([0, base / 2, base], ["0", format_number(base / 2), format_number(base)])


def _caption(module: ModulePlan) -> str:
    optimizer = module.spec.optimizer
    if optimizer is None:
        return ""
    settings = ", ".join(
        filter(None, (f"{optimizer.type} at {format_number(optimizer.learning_rate)}", describe_optimizer(optimizer)))
    )
    phases = module.spec.schedule or []
    plateau = " (Plateau: shown without drops)" if any(phase.type == "Plateau" for phase in phases) else ""
    return f"{settings} · {describe_schedule(phases)}{plateau}"


# Training --------------------------------------------------------------------------------------------------------


def plot_training(history: History, title: str, metric: str | None = None) -> Figure:
    """Loss, evaluation metrics, and learning rate and gradient norm per module, over the steps of a run.

    Args:
        history: the steps and evaluations of the run.
        title: name of the run.
        metric: the evaluation metric that selects the best checkpoint.
    """
    metrics = [_metrics_panel] if history.maximized_metrics(metric) else []
    plots = [_loss_panel, *metrics, _learning_rate_panel, _gradient_norm_panel]
    figure = _figure(1.0 + 2.35 * len(plots))
    panels = _stack(figure, [1.0] * len(plots))
    for axes, plot in zip(panels, plots, strict=True):
        plot(axes, history, metric)
    _step_axis(panels, history.steps[-1].step if history.steps else 1, history.steps_per_epoch)
    _title(figure, title, _improvement(history, metric))
    return figure


def _loss_panel(axes: Axes, history: History, metric: str | None) -> None:
    losses = [record.loss for record in history.steps]
    axes.plot(history.step_numbers, losses, color=MUTED_COLOR, linewidth=0.7, alpha=0.5)
    axes.plot(history.step_numbers, smooth(losses), color=TEXT_COLOR, linewidth=1.8, label="training loss (smoothed)")
    _plot_metric(axes, history, "eval/loss", "#cc3311", "evaluation loss")
    axes.set_ylabel("loss")
    if dynamic_range(losses) > 30:
        _use_log_scale(axes)
    _legend(axes)


def _metrics_panel(axes: Axes, history: History, metric: str | None) -> None:
    for color, name in zip(METRIC_COLORS, history.maximized_metrics(metric), strict=False):
        _plot_metric(axes, history, name, color, name.removeprefix("eval/"), emphasized=name == metric)
    axes.set_ylabel("evaluation")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    _legend(axes)


def _plot_metric(
    axes: Axes, history: History, metric: str, color: str, label: str, *, emphasized: bool = False
) -> None:
    found = [(one.step, one.metrics[metric]) for one in history.evaluations if metric in one.metrics]
    if found:
        steps, values = zip(*found, strict=True)
        axes.plot(
            steps, values, color=color, linewidth=2.0 if emphasized else 1.3, label=label, clip_on=False, zorder=3,
            marker="o", markersize=5.5, markeredgecolor="white", markeredgewidth=0.8,
        )  # fmt: skip


def _learning_rate_panel(axes: Axes, history: History, metric: str | None) -> None:
    by_module = {module: history.learning_rates(module) for module in history.modules}
    highest = {module: max(positive) for module, rates in by_module.items() if (positive := _positive(rates))}
    logarithmic = bool(highest) and max(highest.values()) > 8 * min(highest.values())
    for index, (module, rates) in enumerate(by_module.items()):
        visible = [math.nan if logarithmic and rate <= 0 else rate for rate in rates]
        label = f"{module} (frozen)" if all(history.frozen(module)) else module
        axes.plot(history.step_numbers, visible, color=module_color(index), linewidth=1.8, label=label)
    axes.set_ylabel("learning rate")
    if logarithmic:
        _use_log_scale(axes)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(highest.values()) / 100))
    else:
        axes.set_ylim(0, max(highest.values(), default=1.0) * 1.08)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: format_number(rate)))
    _shade_frozen(axes, history, labels=True)
    _legend(axes)


def _gradient_norm_panel(axes: Axes, history: History, metric: str | None) -> None:
    by_module = {module: history.gradient_norms(module) for module in history.modules}
    for index, norms in enumerate(by_module.values()):
        axes.plot(history.step_numbers, norms, color=module_color(index), linewidth=0.6, alpha=0.35)
        axes.plot(history.step_numbers, smooth(norms), color=module_color(index), linewidth=1.8)
    axes.set_ylabel("gradient norm")
    if dynamic_range(norm for norms in by_module.values() for norm in norms) > 10:
        _use_log_scale(axes)
    _shade_frozen(axes, history, labels=False)


def _shade_frozen(axes: Axes, history: History, *, labels: bool) -> None:
    """Shade the spans in which a module was frozen; one that always was is marked in the legend instead."""
    for index, module in enumerate(history.modules):
        frozen = history.frozen(module)
        for start, end in [] if all(frozen) else frozen_spans(history.step_numbers, frozen):
            _shade(axes, start, end, module_color(index), f"{module} frozen" if labels else "", height=0.07)


def _improvement(history: History, metric: str | None) -> str:
    values = [one.metrics[metric] for one in history.evaluations if metric and metric in one.metrics]
    if not metric or not values:
        return ""
    best = [one.metrics[metric] for one in history.evaluations if one.best and metric in one.metrics]
    return f"{metric.removeprefix('eval/')} {values[0]:.3f} → {(best or values)[-1]:.3f}"


# Figures and axes ------------------------------------------------------------------------------------------------


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _stack(figure: Figure, heights: Sequence[float]) -> list[Axes]:
    """Panels one below the other with a shared x axis."""
    return list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])


def _title(figure: Figure, title: str, subtitle: str) -> None:
    """Title at the left and subtitle at the right, on one line above the panels."""
    inches = figure.get_figheight()
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 1 - 0.42 / inches), h_pad=0.07)
    line = 1 - 0.24 / inches
    figure.text(0.012, line, title, ha="left", va="center", fontsize=13.5, fontweight="bold", color=TEXT_COLOR)
    figure.text(0.988, line, subtitle, ha="right", va="center", fontsize=10.5, color=MUTED_COLOR)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure to a file, in the format of the file's extension."""
    for axes in figure.axes:
        _style(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _style(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(SPINE_COLOR)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=SPINE_COLOR, labelcolor=TEXT_COLOR)
    axes.tick_params(which="minor", length=0)


def _step_axis(panels: Sequence[Axes], last: int, per_epoch: int) -> None:
    """Steps and epochs below the last panel, with a line for each epoch in all panels."""
    for axes in panels:
        axes.set_xlim(0, max(1, last))
        for epoch in _epochs(last, per_epoch):
            axes.axvline(epoch * per_epoch, color="#d5d5de", linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
    for axes in panels[:-1]:
        axes.tick_params(axis="x", length=0)
    bottom = panels[-1]
    bottom.set_xlabel("optimizer step", color=TEXT_COLOR)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if _epochs(last, per_epoch):
        _epoch_axis(bottom, per_epoch, _epochs(last, per_epoch))


def _epoch_axis(axes: Axes, per_epoch: int, epochs: Sequence[int]) -> None:
    below = axes.secondary_xaxis("bottom")
    below.spines["bottom"].set_position(("outward", 38))
    below.spines["bottom"].set_visible(False)
    below.set_xticks([epoch * per_epoch for epoch in epochs], [f"{epoch}" for epoch in epochs])
    below.tick_params(length=0, labelsize=8.5, labelcolor=MUTED_COLOR)
    below.set_xlabel("epochs completed", color=MUTED_COLOR, fontsize=9)


def _epochs(last: int, per_epoch: int) -> list[int]:
    done = last // per_epoch if per_epoch else 0
    stride = max(1, math.ceil(done / 25))
    return list(range(stride, done + 1, stride))


def _use_log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    is_long = sum(map(len, labels)) > MAX_LEGEND_LENGTH  # it would be wider than the axes
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, fontsize=7.5 if is_long else 9.5,
        borderaxespad=0.1, borderpad=0.1, handlelength=1.6, columnspacing=1.0 if is_long else 2.0,
        labelcolor=TEXT_COLOR,
    )  # fmt: skip


def _shade(axes: Axes, start: int, end: int, color: str, label: str, *, height: float = 0.5) -> None:
    if end > start:
        axes.axvspan(start, end, color=color, alpha=0.1, linewidth=0, zorder=0)
        axes.text(
            (start + end) / 2, height, label, transform=axes.get_xaxis_transform(), ha="center", va="center",
            fontsize=9, color=color, style="italic",
        )  # fmt: skip


# Data ------------------------------------------------------------------------------------------------------------


def frozen_spans(steps: Sequence[int], frozen: Sequence[bool]) -> list[tuple[int, int]]:
    """The spans in which a module was frozen; the record of step 5 covers the span from 4 to 5.

    >>> frozen_spans([1, 2, 3, 4], [True, True, False, True])
    [(0, 2), (3, 4)]
    """
    found: list[tuple[int, int]] = []
    for is_frozen, run in groupby(range(len(steps)), key=lambda index: frozen[index]):
        first, *rest = run
        if is_frozen:
            found.append((steps[first] - 1, steps[rest[-1] if rest else first]))
    return found


def downsample(items: Sequence[T]) -> list[T]:
    """At most `MAX_POINTS` evenly spaced items and the last."""
    stride = max(1, math.ceil(len(items) / MAX_POINTS))
    return [*items[:-1:stride], *items[-1:]]


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average with a window that grows with the length of the run; NaN stays NaN."""
    decay = 1 - 1 / max(1.0, min(50.0, len(values) / 25))
    smoothed: list[float] = []
    average, weight = 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            average, weight = decay * average + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(average / weight if math.isfinite(value) and weight else math.nan)
    return smoothed


def dynamic_range(values: Iterable[float]) -> float:
    """Ratio of the highest to the lowest positive value."""
    positive = _positive(values)
    return max(positive) / min(positive) if positive else 1.0


def _positive(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value) and value > 0]
