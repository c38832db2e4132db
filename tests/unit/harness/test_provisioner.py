"""PersistentVolumes for pending claims of the default StorageClass."""

from pathlib import Path
from typing import Any

import pytest

from harness.provisioner import STORAGE_CLASS, build_volume_for_claim, needs_volume


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


def test_volume_references_its_claim() -> None:
    volume = build_volume_for_claim(claim(), Path("/volumes"), "node-1")
    assert volume["metadata"]["name"] == "team-data-12345678"
    spec = volume["spec"]
    assert spec["local"] == {"path": "/volumes/team-data-12345678"}
    assert spec["claimRef"] == {"namespace": "team", "name": "data", "uid": "12345678-aaaa"}
    assert (spec["capacity"], spec["accessModes"]) == ({"storage": "3Gi"}, ["ReadWriteMany"])


@pytest.mark.parametrize(
    ("spec", "expected"), [({}, True), ({"storageClassName": "other"}, False), ({"volumeName": "v"}, False)]
)
def test_needs_volume(spec: dict[str, str], expected: bool) -> None:
    assert needs_volume(claim(**spec)) is expected


def test_claim_being_deleted_needs_no_volume() -> None:
    deleted = claim()
    deleted["metadata"]["deletionTimestamp"] = "now"
    assert not needs_volume(deleted)
