"""Volumes for claims: a StorageClass that is the default, and a folder of this machine for each claim that asks for it.

A new folder belongs to root and is closed to others, as a new disk is, so a pod that forgot `fsGroup` fails here too.
Run as `python -m harness.provisioner FOLDER`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import httpx

from harness.api import Api
from harness.site import Site

STORAGE_CLASS = "harness-local"
INTERVAL = 0.25
VOLUMES = "/api/v1/persistentvolumes"


def storage_class() -> dict[str, Any]:
    """The default class; claims are bound at once."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "finetune.dev/harness-local",
        "volumeBindingMode": "Immediate",
    }


def volume(name: str, path: Path, node: str, size: str, **spec: Any) -> dict[str, Any]:
    """A PersistentVolume that is a folder of this machine."""
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            **spec,
        },
    }


def volume_for(claim: dict[str, Any], volumes: Path, node: str) -> dict[str, Any]:
    """The PersistentVolume that a claim is waiting for."""
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}"
    return volume(
        name,
        volumes / name,
        node,
        spec["resources"]["requests"]["storage"],
        accessModes=spec["accessModes"],
        storageClassName=STORAGE_CLASS,
        claimRef={key: metadata[key] for key in ("namespace", "name", "uid")},
    )


def waits(claim: dict[str, Any]) -> bool:
    """Whether a claim asks for our class and has no volume yet."""
    spec = claim["spec"]
    ours = spec.get("storageClassName") == STORAGE_CLASS and not spec.get("volumeName")
    return ours and "deletionTimestamp" not in claim["metadata"]


def provision(api: Api, site: Site) -> None:
    """Make the volumes that claims wait for, and forget those whose claim is gone."""
    assert site.node is not None
    for claim in filter(waits, api.get("/api/v1/persistentvolumeclaims")["items"]):
        made = volume_for(claim, site.volumes, site.node.name)
        Path(made["spec"]["local"]["path"]).mkdir(exist_ok=True)
        api.ensure(VOLUMES, made)
    for each in api.get(VOLUMES)["items"]:
        if each["spec"].get("storageClassName") == STORAGE_CLASS and each["status"].get("phase") == "Released":
            api.delete(f"{VOLUMES}/{each['metadata']['name']}")


def main(folder: Path) -> None:
    """Provision for ever."""
    site = Site.load(folder)
    api = Api(site.admin)
    api.ensure("/apis/storage.k8s.io/v1/storageclasses", storage_class())
    while True:
        try:
            provision(api, site)
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            print(error, file=sys.stderr, flush=True)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
