"""Log format: one line per record on standard error, as plain text or as JSON.

Records about a FineTuneJob have the fields `namespace`, `name`, `attempt` and, for events, `reason`. In JSON they are
keys of their own; in plain text the message starts with `namespace/name: reason: `.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class LogFormat(StrEnum):
    """Format of log lines."""

    PLAIN = "plain"
    JSON = "json"


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of a FineTuneJob to every record; `extra` of a single call adds more.

    The fields are one attribute of the record, `fields`, because `name` is the name of the logger there.
    """

    def __init__(self, logger: logging.Logger, namespace: str, name: str, attempt: int | None) -> None:
        super().__init__(logger, {"namespace": namespace, "name": name, "attempt": attempt})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, {**kwargs, "extra": {"fields": {key: value for key, value in fields.items() if value is not None}}}


class PlainFormatter(logging.Formatter):
    """`<time> <level> <namespace>/<name>: <reason>: <message>`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 overrides logging's
        fields = getattr(record, "fields", {})
        job = f"{fields['namespace']}/{fields['name']}: " if "name" in fields else ""
        reason = f"{fields['reason']}: " if "reason" in fields else ""
        return f"{super().formatMessage(record)} {job}{reason}{record.message}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(log_format: LogFormat, *, debug: bool) -> None:
    """Log to standard error. Libraries log every event and request, so only their warnings and errors are kept."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else PlainFormatter())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for library in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(library).setLevel(logging.INFO if debug else logging.WARNING)
