"""Measures the duration of steps, and estimates when the run will be complete."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime, timedelta

THROUGHPUT_WINDOW = 20
"""Number of recent steps over which the throughput is averaged."""


class StepTimer:
    """Measures steps.

    Args:
        step: optimizer steps done before this attempt.
        elapsed: seconds of training before this attempt.
    """

    def __init__(self, step: int, elapsed: float) -> None:
        self._resumed_step, self._elapsed_before = step, elapsed
        self._run_start = self._step_start = time.perf_counter()
        self._durations: deque[float] = deque(maxlen=THROUGHPUT_WINDOW)

    def start_step(self) -> None:
        self._step_start = time.perf_counter()

    def end_step(self, step: int) -> None:
        """Record the duration of a step. `step` is the number of steps done, including this one."""
        self._durations.append(time.perf_counter() - self._step_start)
        self._step = step

    @property
    def last_duration(self) -> float:
        """Seconds of the last step."""
        return self._durations[-1]

    @property
    def mean_duration(self) -> float:
        """Mean seconds per step, over `THROUGHPUT_WINDOW` steps."""
        return sum(self._durations) / len(self._durations)

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all attempts."""
        return self._elapsed_before + time.perf_counter() - self._run_start

    def estimate_completion(self, planned_steps: int) -> datetime | None:
        """When the last step will end at the mean pace of this attempt, including evaluations and checkpoints.

        None if that is too far away for a date.
        """
        steps_done = self._step - self._resumed_step
        seconds_per_step = (time.perf_counter() - self._run_start) / steps_done
        try:
            return datetime.now(UTC) + timedelta(seconds=seconds_per_step * (planned_steps - self._step))
        except OverflowError:
            return None
