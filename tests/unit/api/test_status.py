"""Status fields that are computed, and the size of the termination message."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from finetune_api.status import Progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("step", "planned_steps", "percentage", "summary"),
    [
        pytest.param(0, 168, 0.0, "0/168 (0%)", id="before the first step"),
        pytest.param(46, 168, 27.38, "46/168 (27%)", id="in progress"),
        pytest.param(9999, 10_000, 99.99, "9999/10000 (99%)", id="never 100% before the last step"),
        pytest.param(168, 168, 100.0, "168/168 (100%)", id="done"),
        pytest.param(169, 168, 100.0, "169/168 (100%)", id="never more than 100%"),
        pytest.param(5, 0, 0.0, "5", id="planned steps unknown"),
    ],
)
def test_progress_summary_and_percentage(step: int, planned_steps: int, percentage: float, summary: str) -> None:
    progress = Progress.at_step(step, planned_steps, epoch=0.0, observed_time=NOW)
    assert (progress.percentage, progress.summary) == (percentage, summary)
