"""Claims of the default StorageClass get a folder of this machine, and other claims do not."""

from pathlib import Path
from typing import Any

import pytest

from harness.provisioner import STORAGE_CLASS, volume_for, waits


def claim(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "data", "uid": "12345678-aaaa"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "3Gi"}},
            "storageClassName": STORAGE_CLASS,
            **spec,
        },
    }


def test_a_volume_is_reserved_for_its_claim() -> None:
    made = volume_for(claim(), Path("/volumes"), "node-1")
    assert made["metadata"]["name"] == "team-data-12345678"
    spec = made["spec"]
    assert spec["local"] == {"path": "/volumes/team-data-12345678"}
    assert spec["claimRef"] == {"namespace": "team", "name": "data", "uid": "12345678-aaaa"}
    assert (spec["capacity"], spec["accessModes"]) == ({"storage": "3Gi"}, ["ReadWriteMany"])


@pytest.mark.parametrize(
    ("spec", "expected"), [({}, True), ({"storageClassName": "other"}, False), ({"volumeName": "v"}, False)]
)
def test_who_waits(spec: dict[str, str], expected: bool) -> None:
    assert waits(claim(**spec)) is expected


def test_a_claim_that_is_being_deleted_waits_no_more() -> None:
    going = claim()
    going["metadata"]["deletionTimestamp"] = "now"
    assert not waits(going)
