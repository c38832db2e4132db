"""Log records about a FineTuneJob name it in fields of their own."""

from __future__ import annotations

import json
import logging
import re
from io import StringIO

import pytest

from finetune_operator.logs import JobLogger, JsonFormatter, PlainFormatter


class Log:
    """A logger that writes to a string."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        self.logger = logging.Logger("test")
        self.logger.addHandler(handler)

    def job(self, attempt: int | None = 2) -> JobLogger:
        return JobLogger(self.logger, "team", "clip", attempt)


@pytest.fixture
def plain() -> Log:
    return Log(PlainFormatter())


@pytest.fixture
def structured() -> Log:
    return Log(JsonFormatter())


def test_json_line_has_fields_of_the_job_and_of_the_event(structured: Log) -> None:
    structured.job().info("attempt %d is running", 2, extra={"reason": "Running"})
    line = json.loads(structured.stream.getvalue())
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$", line.pop("time"))
    assert line == {
        "level": "info", "logger": "test", "message": "attempt 2 is running",
        "namespace": "team", "name": "clip", "attempt": 2, "reason": "Running",
    }  # fmt: skip


def test_json_line_leaves_out_unknown_fields(structured: Log) -> None:
    structured.job(attempt=None).warning("rejected")
    structured.logger.info("no job")
    job, other = map(json.loads, structured.stream.getvalue().splitlines())
    assert job.keys() == {"time", "level", "logger", "message", "namespace", "name"}
    assert other.keys() == {"time", "level", "logger", "message"}


def test_json_line_contains_the_traceback(structured: Log) -> None:
    structured.job().warning("failed", exc_info=ValueError("boom"))
    line = json.loads(structured.stream.getvalue())
    assert "ValueError: boom" in line["exception"] and line["name"] == "clip"


def test_plain_line_starts_with_job_and_reason(plain: Log) -> None:
    plain.job().info("attempt 2 is running", extra={"reason": "Running"})
    plain.job().warning("rejected")
    plain.logger.info("no job")
    assert [line[24:] for line in plain.stream.getvalue().splitlines()] == [
        "INFO    team/clip: Running: attempt 2 is running",
        "WARNING team/clip: rejected",
        "INFO    no job",
    ]
