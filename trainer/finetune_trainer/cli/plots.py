"""Pictures: the schedules of a job before anything runs, and what became of a run. matplotlib without pyplot's state.

Figures are built from a plan or from the records of `metrics.jsonl` and know no files; only `save` does.
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

from finetune_api.defaults import lower_is_better
from finetune_trainer.callbacks import EvaluationRecord, StepRecord
from finetune_trainer.cli.plan_table import colour, number, optimizer_phrase, schedule_phrase, steps_phrase
from finetune_trainer.plan import ModulePlan, SchedulePlan
from finetune_trainer.reporting.metrics_jsonl import MetricsRecord

INK, FAINT, EDGE, GRID = "#2b2b33", "#84848f", "#c9c9d1", "#ececf1"
SCORES = ("#ee7733", "#009988", "#aa4499", "#997700", "#555560")
WIDTH, DPI = 9.6, 150
ROOM = 130
"""Letters of a caption beside a module's name; the name is set larger."""
T = TypeVar("T")
POINTS = 4000
"""More points than pixels help nobody; longer runs are thinned out."""


@dataclass(frozen=True)
class History:
    """What happened in a run: its steps and its evaluations, each in order."""

    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]

    @classmethod
    def of(cls, records: Iterable[MetricsRecord]) -> History:
        """The history that these records tell, thinned out if it is long."""
        told = list(records)
        steps = [record for record in told if isinstance(record, StepRecord)]
        evaluations = [record for record in told if isinstance(record, EvaluationRecord)]
        return cls(tuple(thinned(steps)), tuple(evaluations))

    @property
    def at(self) -> list[int]:
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

    def rates(self, module: str) -> list[float]:
        return self._while_learning(module, [record.learning_rates.get(module, math.nan) for record in self.steps])

    def norms(self, module: str) -> list[float]:
        return self._while_learning(module, [record.gradient_norms.get(module, math.nan) for record in self.steps])

    def scores(self, metric: str | None) -> list[str]:
        """Evaluation metrics that get better as they rise, the one that decides first."""
        names = dict.fromkeys(name for one in self.evaluations for name in one.metrics)
        return sorted((name for name in names if not lower_is_better(name)), key=lambda name: name != metric)

    def _while_learning(self, module: str, values: Sequence[float]) -> list[float]:
        return [math.nan if still else value for still, value in zip(self.frozen(module), values, strict=True)]


# The picture before a run ----------------------------------------------------------------------------------------


def schedule_figure(plan: SchedulePlan) -> Figure:
    """The learning rate of every module over the run, one panel each, with epochs marked and frozen spans shaded."""
    heights = [1.0 if module.schedule else 0.22 for module in plan.modules]
    figure = _figure(1.5 + sum(1.6 * height + 0.35 for height in heights))
    panels = _stack(figure, heights)
    for position, (axes, module) in enumerate(zip(panels, plan.modules, strict=True)):
        _schedule_panel(axes, plan, module, colour(position))
    _step_axis(panels, plan.planned_steps, plan.steps_per_epoch)
    _title(figure, f"{plan.job.name}: learning rates", steps_phrase(plan.planned_steps, plan.steps_per_epoch))
    return figure


def _schedule_panel(axes: Axes, plan: SchedulePlan, module: ModulePlan, shade: str) -> None:
    window = module.window
    steps = thinned(range(window.start, window.end))
    rates = [module.learning_rate(step) for step in steps]
    axes.plot(steps, rates, color=shade, linewidth=1.8, solid_capstyle="round")
    axes.fill_between(steps, rates, color=shade, alpha=0.12, linewidth=0)
    still = [(0, window.start), (window.end, plan.planned_steps)] if window.length else [(0, plan.planned_steps)]
    for start, end in still:
        _shade(axes, start, end, FAINT, "frozen")
    _base_rate_axis(axes, module)
    axes.set_title(module.name, loc="left", color=shade, fontsize=10.5, fontweight="bold")
    room = max(ROOM - round(1.3 * len(module.name)), 20)
    axes.set_title(shorten(_caption(module), room, placeholder=" …"), loc="right", color=FAINT, fontsize=9)


def _base_rate_axis(axes: Axes, module: ModulePlan) -> None:
    if module.spec.optimizer is None or module.schedule is None:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        return
    base = module.spec.optimizer.learning_rate
    highest = max([base, *(module.learning_rate(step) for step in range(module.window.start, module.window.end))])
    axes.set_ylim(0, highest * 1.08)
    axes.set_yticks([0, base / 2, base], ["0", number(base / 2), number(base)])


def _caption(module: ModulePlan) -> str:
    optimizer = module.spec.optimizer
    if optimizer is None:
        return ""
    settings = ", ".join(
        filter(None, (f"{optimizer.type} at {number(optimizer.learning_rate)}", optimizer_phrase(optimizer)))
    )
    phases = module.spec.schedule or []
    flat = " (drawn without drops)" if any(phase.type == "Plateau" for phase in phases) else ""
    return f"{settings} · {schedule_phrase(phases)}{flat}"


# The picture of a run --------------------------------------------------------------------------------------------


def training_figure(history: History, title: str, metric: str | None = None) -> Figure:
    """Loss, evaluation, then learning rate and gradient norm per module, over the steps of one run.

    Args:
        history: what happened.
        title: whose run it was.
        metric: the evaluation metric that decides.
    """
    draw = [_loss_panel, *([_score_panel] if history.scores(metric) else []), _rate_panel, _norm_panel]
    figure = _figure(1.0 + 2.35 * len(draw))
    panels = _stack(figure, [1.0] * len(draw))
    for axes, panel in zip(panels, draw, strict=True):
        panel(axes, history, metric)
    _step_axis(panels, history.steps[-1].step if history.steps else 1, history.steps_per_epoch)
    _title(figure, title, _outcome(history, metric))
    return figure


def _loss_panel(axes: Axes, history: History, metric: str | None) -> None:
    losses = [record.loss for record in history.steps]
    axes.plot(history.at, losses, color=FAINT, linewidth=0.7, alpha=0.5)
    axes.plot(history.at, smooth(losses), color=INK, linewidth=1.8, label="training loss, smoothed")
    _evaluated(axes, history, "eval/loss", "#cc3311", "evaluation loss")
    axes.set_ylabel("loss")
    if spread(losses) > 30:
        _logarithm(axes)
    _legend(axes)


def _score_panel(axes: Axes, history: History, metric: str | None) -> None:
    for shade, name in zip(SCORES, history.scores(metric), strict=False):
        _evaluated(axes, history, name, shade, name.removeprefix("eval/"), strong=name == metric)
    axes.set_ylabel("evaluation")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    _legend(axes)


def _evaluated(axes: Axes, history: History, metric: str, shade: str, label: str, *, strong: bool = False) -> None:
    found = [(one.step, one.metrics[metric]) for one in history.evaluations if metric in one.metrics]
    if found:
        steps, values = zip(*found, strict=True)
        axes.plot(
            steps, values, color=shade, linewidth=2.0 if strong else 1.3, label=label, clip_on=False, zorder=3,
            marker="o", markersize=5.5, markeredgecolor="white", markeredgewidth=0.8,
        )  # fmt: skip


def _rate_panel(axes: Axes, history: History, metric: str | None) -> None:
    by_module = {module: history.rates(module) for module in history.modules}
    highest = {module: max(used) for module, rates in by_module.items() if (used := _positive(rates))}
    logarithmic = bool(highest) and max(highest.values()) > 8 * min(highest.values())
    for position, (module, rates) in enumerate(by_module.items()):
        shown = [math.nan if logarithmic and rate <= 0 else rate for rate in rates]
        label = module if module in highest else f"{module} (frozen)"
        axes.plot(history.at, shown, color=colour(position), linewidth=1.8, label=label)
    axes.set_ylabel("learning rate")
    if logarithmic:
        _logarithm(axes)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(highest.values()) / 100))
    else:
        axes.set_ylim(0, max(highest.values(), default=1.0) * 1.08)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: number(rate)))
    _shade_frozen(axes, history, named=True)
    _legend(axes)


def _norm_panel(axes: Axes, history: History, metric: str | None) -> None:
    by_module = {module: history.norms(module) for module in history.modules}
    for position, norms in enumerate(by_module.values()):
        axes.plot(history.at, norms, color=colour(position), linewidth=0.6, alpha=0.35)
        axes.plot(history.at, smooth(norms), color=colour(position), linewidth=1.8)
    axes.set_ylabel("gradient norm")
    if spread(norm for norms in by_module.values() for norm in norms) > 10:
        _logarithm(axes)
    _shade_frozen(axes, history, named=False)


def _shade_frozen(axes: Axes, history: History, *, named: bool) -> None:
    """Tell when which module was frozen; one that always was says so in the legend."""
    for position, module in enumerate(history.modules):
        frozen = history.frozen(module)
        for start, end in [] if all(frozen) else spans(history.at, frozen):
            _shade(axes, start, end, colour(position), f"{module} frozen" if named else "", height=0.07)


def _outcome(history: History, metric: str | None) -> str:
    measured = [one.metrics[metric] for one in history.evaluations if metric and metric in one.metrics]
    if not metric or not measured:
        return ""
    best = [one.metrics[metric] for one in history.evaluations if one.best and metric in one.metrics]
    return f"{metric.removeprefix('eval/')} {measured[0]:.3f} → {(best or measured)[-1]:.3f}"


# Shared strokes --------------------------------------------------------------------------------------------------


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _stack(figure: Figure, heights: Sequence[float]) -> list[Axes]:
    """Panels one below the other, with one axis of steps."""
    return list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])


def _title(figure: Figure, title: str, subtitle: str) -> None:
    """Title at the left and what matters most at the right, on one line above everything."""
    inches = figure.get_figheight()
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 1 - 0.42 / inches), h_pad=0.07)
    line = 1 - 0.24 / inches
    figure.text(0.012, line, title, ha="left", va="center", fontsize=13.5, fontweight="bold", color=INK)
    figure.text(0.988, line, subtitle, ha="right", va="center", fontsize=10.5, color=FAINT)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure where it is wanted; the format follows the file's name."""
    for axes in figure.axes:
        _tidy(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _tidy(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(EDGE)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=EDGE, labelcolor=INK)
    axes.tick_params(which="minor", length=0)


def _step_axis(panels: Sequence[Axes], last: int, per_epoch: int) -> None:
    """Steps below the last panel and, below them, epochs, which are marked in all panels."""
    for axes in panels:
        axes.set_xlim(0, max(1, last))
        for epoch in _epochs(last, per_epoch):
            axes.axvline(epoch * per_epoch, color="#d5d5de", linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)
    for axes in panels[:-1]:
        axes.tick_params(axis="x", length=0)
    bottom = panels[-1]
    bottom.set_xlabel("optimizer step", color=INK)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if _epochs(last, per_epoch):
        _epoch_axis(bottom, per_epoch, _epochs(last, per_epoch))


def _epoch_axis(axes: Axes, per_epoch: int, epochs: Sequence[int]) -> None:
    below = axes.secondary_xaxis("bottom")
    below.spines["bottom"].set_position(("outward", 38))
    below.spines["bottom"].set_visible(False)
    below.set_xticks([epoch * per_epoch for epoch in epochs], [f"{epoch}" for epoch in epochs])
    below.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
    below.set_xlabel("epochs done", color=FAINT, fontsize=9)


def _epochs(last: int, per_epoch: int) -> list[int]:
    done = last // per_epoch if per_epoch else 0
    stride = max(1, math.ceil(done / 25))
    return list(range(stride, done + 1, stride))


def _logarithm(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, fontsize=9.5, borderaxespad=0.1,
        borderpad=0.1, handlelength=1.6, labelcolor=INK,
    )  # fmt: skip


def _shade(axes: Axes, start: int, end: int, shade: str, words: str, *, height: float = 0.5) -> None:
    if end > start:
        axes.axvspan(start, end, color=shade, alpha=0.1, linewidth=0, zorder=0)
        axes.text(
            (start + end) / 2, height, words, transform=axes.get_xaxis_transform(), ha="center", va="center",
            fontsize=9, color=shade, style="italic",
        )  # fmt: skip


# Numbers behind them ---------------------------------------------------------------------------------------------


def spans(steps: Sequence[int], frozen: Sequence[bool]) -> list[tuple[int, int]]:
    """The stretches during which something was frozen; the record of step 5 tells of the time from 4 to 5.

    >>> spans([1, 2, 3, 4], [True, True, False, True])
    [(0, 2), (3, 4)]
    """
    found: list[tuple[int, int]] = []
    for is_frozen, run in groupby(range(len(steps)), key=lambda position: frozen[position]):
        first, *rest = run
        if is_frozen:
            found.append((steps[first] - 1, steps[rest[-1] if rest else first]))
    return found


def thinned(items: Sequence[T]) -> list[T]:
    """Evenly spaced items, not more than a picture can show, the last among them."""
    stride = max(1, math.ceil(len(items) / POINTS))
    return [*items[:-1:stride], *items[-1:]]


def smooth(values: Sequence[float]) -> list[float]:
    """An exponential average whose memory grows with the length of the run; gaps stay gaps."""
    memory = 1 - 1 / max(1.0, min(50.0, len(values) / 25))
    smoothed: list[float] = []
    average, weight = 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            average, weight = memory * average + (1 - memory) * value, memory * weight + (1 - memory)
        smoothed.append(average / weight if math.isfinite(value) and weight else math.nan)
    return smoothed


def spread(values: Iterable[float]) -> float:
    """How many times the lowest is the highest, values that are not above zero aside."""
    positive = _positive(values)
    return max(positive) / min(positive) if positive else 1.0


def _positive(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value) and value > 0]
