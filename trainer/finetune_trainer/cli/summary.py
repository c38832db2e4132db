"""What a run leaves a person with: how much better the model is, where everything lies, and a picture of how it went.

All of it is read back from the run's folder, so that it is the same for a run that was resumed, or done long ago.
"""

from __future__ import annotations

import json
from pathlib import Path

from finetune_api.job import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.cli.console import Display
from finetune_trainer.cli.plan_table import metrics_phrase, result_table
from finetune_trainer.reporting.metrics_jsonl import METRICS_FILE, read_records
from finetune_trainer.training.export import RUN

PICTURE = "training.png"


def conclude(job: FineTuneJob, claim_paths: ClaimPaths, report: Report, display: Display) -> None:
    """Say what became of a run and where everything is; draw its picture."""
    folder = claim_paths.destination(job.destination)
    told = json.loads((folder / RUN).read_text())
    metric = told["spec"]["evaluation"]["metric"]
    before, after = told["metrics"]["first"], told["metrics"]["last"]
    if told["spec"]["checkpoint"]["keepBest"]:
        after = told["metrics"]["best"] or after
    tested = told["metrics"].get("test")
    if before and after:
        display.show(result_table(before, after, metric, tested))
    elif tested:
        display.say(f"test set  {metrics_phrase({name: it for name, it in tested.items() if name != 'step'})}")
    display.say(report.message)
    display.say(f"  model    {folder}")
    display.say(f"  metrics  {folder / METRICS_FILE}")
    display.say(f"  plot     {_draw(folder, job.name, metric)}")


def _draw(folder: Path, title: str, metric: str) -> str:
    """Draw the run's picture; a run that went well does not fail for its picture."""
    try:
        from finetune_trainer.cli import plots  # here, because it is part of what must not fail the run

        history = plots.History.of(read_records(folder / METRICS_FILE))
        return str(plots.save(plots.training_figure(history, title, metric), folder / PICTURE))
    except Exception as error:  # noqa: BLE001
        return f"could not be drawn: {type(error).__name__}: {error}"
