"""`metrics.jsonl`: one JSON object per line for each step, each evaluation and the test.

Records are written by a background thread, so that a slow disk does not block training. A resumed run truncates the
file to its checkpoint: the file then has the same rows as one of a run without interruption.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from finetune_trainer.callbacks import Callback, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.errors import RunError

METRICS_FILE = "metrics.jsonl"
CLOSE_SECONDS = 60.0
"""Time for the last records; the disk may hang."""
MetricsRecord = StepRecord | EvaluationRecord | TestRecord
ROW_TYPES = {StepRecord: "step", EvaluationRecord: "evaluation", TestRecord: "test"}


class MetricsWriter(Callback):
    """Appends records to a file, in a background thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[MetricsRecord | threading.Event | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write_queued, name="metrics-writer", daemon=True)
        self._thread.start()

    def on_step_end(self, record: StepRecord) -> None:
        self._queue.put(record)

    def on_evaluate(self, record: EvaluationRecord) -> None:
        self._queue.put(record)

    def on_test(self, record: TestRecord) -> None:
        self._queue.put(record)

    def flush(self) -> None:
        """Block until all records received so far are on disk. A checkpoint must not be newer than its metrics.

        Raises:
            RunError: a record could not be written.
        """
        flushed = threading.Event()
        self._queue.put(flushed)
        while not flushed.wait(1.0) and self._thread.is_alive():
            pass
        if problem := self.problem:
            raise RunError(f"cannot write {problem}; the next attempt resumes from the last checkpoint")

    @property
    def problem(self) -> str | None:
        """The file and the error, if a record could not be written; later ones are not written, either."""
        if self._error is None:
            return None
        reason = getattr(self._error, "strerror", None) or f"{type(self._error).__name__}: {self._error}"
        return f"{self.path}: {reason}"

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write_queued(self) -> None:
        """Write records until `close`. After an error they are dropped, because the last row may be incomplete."""
        try:
            with self.path.open("a") as file:
                while (item := self._queue.get()) is not None:
                    self._write(file, item)
        except Exception as error:  # noqa: BLE001 - e.g. a value that is not JSON; `flush` must not wait for ever
            self._error = error
            self._release_waiting()

    def _release_waiting(self) -> None:
        """Let those that wait in `flush` go on."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()

    def _write(self, file: TextIO, item: MetricsRecord | threading.Event) -> None:
        if isinstance(item, threading.Event):
            try:
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                self._error = error  # before `flush` reads it
                raise
            finally:
                item.set()
        else:
            file.write(json.dumps(_to_row(item)) + "\n")
            if self._queue.empty():
                file.flush()


def truncate(path: Path, step: int, last_evaluated_step: int) -> None:
    """Drop the rows that are newer than a checkpoint.

    Args:
        path: the file; created empty if it does not exist.
        step: the step of the checkpoint; later steps are dropped.
        last_evaluated_step: the step of its last evaluation, -1 without one; later evaluations are dropped.
    """
    rows = _read_rows(path)
    kept = [row for row in rows if row["step"] <= (last_evaluated_step if row["type"] == "evaluation" else step)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    temporary.replace(path)  # a new file: a process that still has the old one open cannot append to it


def read_records(path: Path) -> Iterator[MetricsRecord]:
    """The records of a file, in order. A last line that was cut off is ignored."""
    return map(_from_row, _read_rows(path))


def find_test_record(path: Path, step: int) -> TestRecord | None:
    """The last test after `step` steps, if the file has one."""
    tests = [record for record in read_records(path) if isinstance(record, TestRecord) and record.step == step]
    return tests[-1] if tests else None


def _to_row(record: MetricsRecord) -> dict[str, Any]:
    """A record as JSON. NaN and infinity become null: JSON has no other value for them."""
    return {"type": ROW_TYPES[type(record)], **{key: _to_json(value) for key, value in asdict(record).items()}}


def _from_row(row: dict[str, Any]) -> MetricsRecord:
    """The record that a row was written from; null numbers become NaN."""
    fields = {key: value for key, value in row.items() if key != "type"}
    if row["type"] == "test":
        return TestRecord(**fields | {"metrics": _to_floats(row["metrics"])})
    if row["type"] == "evaluation":
        return EvaluationRecord(**fields | {"metrics": _to_floats(row["metrics"])})
    norms, timestamp = _to_floats(row["gradient_norms"]), row["estimated_completion_time"]
    completion = datetime.fromisoformat(timestamp) if timestamp else None
    loss = _to_floats({"loss": row["loss"]})
    return StepRecord(**fields | loss | {"gradient_norms": norms, "estimated_completion_time": completion})


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(inner) for key, inner in value.items()}
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_floats(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
