"""A FineTuneJob as the operator remembers it: the document, what it means, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from finetune_api.job import FineTuneJob, parse
from finetune_api.status import Attempt, JobStatus
from finetune_operator.config import explain


class Key(NamedTuple):
    """Which FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class ObservedJob:
    """One FineTuneJob.

    Args:
        spec: exactly what the user wrote; the trainer gets it unchanged.
        document: the same, parsed; None when it does not obey the language, and then `problem` says why.
    """

    key: Key
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: dict[str, Any]
    document: FineTuneJob | None
    problem: str
    status: JobStatus

    @property
    def suspended(self) -> bool:
        """Whether the user wants it to stop."""
        return self.spec.get("suspend") is True

    @property
    def finished(self) -> bool:
        """Whether it has ended for good."""
        return self.condition("Succeeded") in ("True", "False")

    @property
    def state(self) -> str:
        """The word a person reads; empty before the operator has said anything."""
        return next((it.reason for it in self.status.conditions if it.type == "Succeeded"), "")

    def condition(self, kind: str) -> str:
        """The status of one of its conditions; `Unknown` when it has none."""
        return next((str(it.status) for it in self.status.conditions if it.type == kind), "Unknown")

    def record(self, number: int) -> Attempt | None:
        """What is written down about an attempt."""
        return next((it for it in self.status.attempts or [] if it.number == number), None)


def observe(raw: dict[str, Any]) -> ObservedJob:
    """Read a FineTuneJob as the API server gives it."""
    metadata = raw["metadata"]
    document, problem = _understand(raw)
    return ObservedJob(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        resource_version=metadata.get("resourceVersion", ""),
        deleting="deletionTimestamp" in metadata,
        spec=raw.get("spec") or {},
        document=document,
        problem=problem,
        status=JobStatus.model_validate(raw.get("status") or {}),
    )


def _understand(raw: dict[str, Any]) -> tuple[FineTuneJob | None, str]:
    try:
        return parse({key: value for key, value in raw.items() if key != "status"}), ""
    except ValidationError as error:
        return None, explain(error)
