"""A FineTuneJob as last seen: its spec as written and as parsed, and its status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from finetune_api.job import FineTuneJob, parse
from finetune_api.status import AttemptStatus, JobStatus
from finetune_operator.config import describe_errors
from finetune_operator.core.objects import JsonObject, NamespacedName


@dataclass(frozen=True)
class ObservedJob:
    """One FineTuneJob.

    Args:
        spec: exactly as the user wrote it; the trainer gets it unchanged.
        parsed: the validated job; None if it is invalid; `parse_error` is the reason.
    """

    key: NamespacedName
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: JsonObject
    parsed: FineTuneJob | None
    parse_error: str
    status: JobStatus

    @classmethod
    def from_object(cls, obj: JsonObject) -> ObservedJob:
        """Read a FineTuneJob as the API server returns it."""
        metadata = obj["metadata"]
        parsed, parse_error = _parse(obj)
        return cls(
            key=NamespacedName(metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            resource_version=metadata.get("resourceVersion", ""),
            deleting="deletionTimestamp" in metadata,
            spec=obj.get("spec") or {},
            parsed=parsed,
            parse_error=parse_error,
            status=JobStatus.model_validate(obj.get("status") or {}),
        )

    @property
    def suspended(self) -> bool:
        """Whether `spec.suspend` is true."""
        return self.spec.get("suspend") is True

    @property
    def finished(self) -> bool:
        """Whether it has succeeded or failed for good."""
        return self.succeeded in ("True", "False")

    @property
    def succeeded(self) -> Literal["True", "False", "Unknown"]:
        """Status of the condition Succeeded."""
        return next((it.status for it in self.status.conditions if it.type == "Succeeded"), "Unknown")

    @property
    def state(self) -> str:
        """Reason of the condition Succeeded, the STATUS column of kubectl; empty before the first reconciliation."""
        return next((it.reason for it in self.status.conditions if it.type == "Succeeded"), "")

    def attempt(self, number: int) -> AttemptStatus | None:
        """The attempt of this number in status."""
        return next((it for it in self.status.attempts or [] if it.number == number), None)


def _parse(obj: JsonObject) -> tuple[FineTuneJob | None, str]:
    try:
        return parse({key: value for key, value in obj.items() if key != "status"}), ""
    except ValidationError as error:
        return None, describe_errors(error)
