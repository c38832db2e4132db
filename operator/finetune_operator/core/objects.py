"""Fields that Kubernetes objects have in common: namespace and name, controller, conditions, times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

JsonObject = dict[str, Any]
"""A JSON object, as the API server sends and receives it."""


class NamespacedName(NamedTuple):
    """Namespace and name of an object; here always of a FineTuneJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class ReasonMessage:
    """`reason` and `message`, as in a condition, a container state or a pod status."""

    reason: str
    message: str

    @classmethod
    def from_json(cls, part: JsonObject) -> ReasonMessage:
        return cls(part.get("reason", ""), part.get("message", ""))


def controller_uid(obj: JsonObject) -> str:
    """UID of the object's controller; empty if it has none."""
    owners = obj["metadata"].get("ownerReferences") or []
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def true_conditions(status: JsonObject) -> dict[str, ReasonMessage]:
    """The conditions whose status is True, by type."""
    conditions = status.get("conditions") or []
    return {it["type"]: ReasonMessage.from_json(it) for it in conditions if it["status"] == "True"}


def true_since(status: JsonObject, condition_type: str) -> datetime | None:
    """Last transition time of a condition that is True; None if it is not."""
    conditions = status.get("conditions") or []
    times = (
        it.get("lastTransitionTime") for it in conditions if it["type"] == condition_type and it["status"] == "True"
    )
    return next((parse_time(time) for time in times if time), None)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time."""
    return datetime.fromisoformat(text)
