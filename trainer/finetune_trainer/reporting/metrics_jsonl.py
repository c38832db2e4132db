"""`metrics.jsonl`: one line for each step, each evaluation and the test, written beside training and never losing one.

A resumed run cuts the file back to its checkpoint, so that it reads as if the run had never stopped.
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
from typing import Any

from finetune_trainer.callbacks import Callback, EvaluationRecord, StepRecord, TestRecord

NAME = "metrics.jsonl"
Record = StepRecord | EvaluationRecord | TestRecord
KINDS = {StepRecord: "step", EvaluationRecord: "evaluation", TestRecord: "test"}


class MetricsFile(Callback):
    """Appends records to a file, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[Record | threading.Event | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._write, name="metrics-file", daemon=True)
        self._thread.start()

    def on_step(self, record: StepRecord) -> None:
        self._queue.put(record)

    def on_evaluation(self, record: EvaluationRecord) -> None:
        self._queue.put(record)

    def on_test(self, record: TestRecord) -> None:
        self._queue.put(record)

    def flush(self) -> None:
        """Wait until everything said so far is on disk; a checkpoint must not be ahead of its metrics."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        with self.path.open("a") as file:
            while (item := self._queue.get()) is not None:
                try:
                    self._put(file, item)
                except OSError as error:
                    self._error = error

    def _put(self, file: Any, item: Record | threading.Event) -> None:
        if isinstance(item, threading.Event):
            try:
                file.flush()
                os.fsync(file.fileno())
            finally:
                item.set()
        else:
            file.write(json.dumps(row_of(item)) + "\n")
            if self._queue.empty():
                file.flush()


def cut_back(path: Path, step: int, evaluated: int) -> None:
    """Keep what a checkpoint knows of: steps up to `step`, evaluations up to step `evaluated` (-1 for none)."""
    kept = [row for row in rows_in(path) if row["step"] <= (evaluated if row["type"] == "evaluation" else step)]
    rest = path.with_suffix(".tmp")
    rest.write_text("".join(json.dumps(row) + "\n" for row in kept))
    rest.replace(path)  # a new file: whoever still has the old one open writes into nowhere


def read(path: Path) -> Iterator[Record]:
    """The records that a file was written from."""
    return map(record_of, rows_in(path))


def tested_at(path: Path, step: int) -> TestRecord | None:
    """The test after the last step, if it is done already."""
    tests = (record for record in read(path) if isinstance(record, TestRecord) and record.step == step)
    return next(tests, None)


def rows_in(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file; a last one that was cut in half is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def row_of(record: Record) -> dict[str, Any]:
    """A record as JSON; a number that is none is null, which every reader of JSON understands."""
    return {"type": KINDS[type(record)], **{key: _plain(value) for key, value in asdict(record).items()}}


def record_of(row: dict[str, Any]) -> Record:
    """The record that a row was written from."""
    fields = {key: value for key, value in row.items() if key != "type"}
    if row["type"] == "test":
        return TestRecord(**fields | {"metrics": _numbers(row["metrics"])})
    if row["type"] == "evaluation":
        return EvaluationRecord(**fields | {"metrics": _numbers(row["metrics"])})
    norms, when = _numbers(row["gradient_norms"]), row["estimated_completion_time"]
    completion = datetime.fromisoformat(when) if when else None
    loss = _numbers({"loss": row["loss"]})
    return StepRecord(**fields | loss | {"gradient_norms": norms, "estimated_completion_time": completion})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
