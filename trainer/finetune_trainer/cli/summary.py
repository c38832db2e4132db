"""What `finetune run` prints at the end: the improvement, where the results are, and a plot of the run.

All of it is read from the output folder, so it is the same for a run that was resumed or has completed before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.table import Table

from finetune_api.job import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.cli.console import Display
from finetune_trainer.cli.describe import describe_metrics
from finetune_trainer.cli.plan_table import DASH
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE, read_records
from finetune_trainer.training.export import RUN_FILE

PLOT = "training.png"


def print_summary(job: FineTuneJob, claim_paths: ClaimPaths, report: Report, display: Display) -> None:
    """Print the results of a run and where they are, and save its plot."""
    folder = claim_paths.create_destination(job.destination)
    document = json.loads((folder / RUN_FILE).read_text())
    metric = document["spec"]["evaluation"]["metric"]
    before, after = document["metrics"]["first"], document["metrics"].get("final") or document["metrics"]["last"]
    test = document["metrics"].get("test")
    if before and after:
        display.print_view(result_table(before, after, metric, test))
    elif test:
        display.print_line(f"test set  {describe_metrics(_to_floats(test))}")
    display.print_line(report.message)
    display.print_line(f"  model    {folder}")
    display.print_line(f"  metrics  {folder / METRICS_FILE}")
    display.print_line(f"  plot     {_save_plot(folder, job.name, metric)}")


def _save_plot(folder: Path, title: str, metric: str) -> str:
    """Save the plot and return its path, or the reason why there is none: a run must not fail because of its plot."""
    try:
        from finetune_trainer.cli import plots  # its import is a part of what may fail

        if (folder / PLOT).is_symlink():
            (folder / PLOT).unlink()  # its target may be outside the claim
        history = plots.History.from_records(read_records(folder / METRICS_FILE))
        return str(plots.save_figure(plots.plot_training(history, title, metric), folder / PLOT))
    except Exception as error:  # noqa: BLE001
        return f"not saved: {type(error).__name__}: {error}"


def result_table(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    metric: str | None,
    test: Mapping[str, float | None] | None = None,
) -> Table:
    """Evaluation metrics before the first step and of the saved weights.

    Args:
        before, after, test: metrics by name, with the step, as in `run.json`, where a value that is not finite is None;
            `test` are those of the test set.
        metric: the metric that selects the best checkpoint; it is the first row.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Metric", no_wrap=True)
    for heading in ("Before", f"After step {after['step'] or 0:,.0f}", "Change"):
        table.add_column(heading, justify="right", no_wrap=True)
    if test:
        table.add_column("Test set", justify="right", no_wrap=True)
    for name in sorted(after.keys() - {"step"}, key=lambda name: (name != metric, name)):
        old, new = before.get(name), after[name]
        change = DASH if old is None or new is None else f"{new - old:+.4f}"
        cells = [_format_metric(old), _format_metric(new), change]
        if test:
            cells.append(_format_metric(test.get(name.replace("eval/", "test/", 1))))
        table.add_row(name, *cells, style="bold" if name == metric else "")
    return table


def _to_floats(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if it is None else it for name, it in metrics.items() if name != "step"}


def _format_metric(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"
