"""A volume provisioner: the default StorageClass, and a directory of the host for each claim of that class.

A new directory belongs to root and is not writable by others, like a new disk, so that pods without `fsGroup` fail.
Run as `python -m harness.provisioner FOLDER`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import httpx

from harness.api import Api
from harness.cluster_config import ClusterConfig

STORAGE_CLASS = "harness-local"
INTERVAL_S = 0.25
VOLUMES = "/api/v1/persistentvolumes"


def storage_class() -> dict[str, Any]:
    """The default StorageClass, with immediate binding."""
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


def build_volume(name: str, path: Path, node: str, size: str, **spec: Any) -> dict[str, Any]:
    """A local PersistentVolume in a directory of the host."""
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
            **spec,
        },
    }


def build_volume_for_claim(claim: dict[str, Any], volumes: Path, node: str) -> dict[str, Any]:
    """The PersistentVolume for a pending PersistentVolumeClaim."""
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}"
    return build_volume(
        name,
        volumes / name,
        node,
        spec["resources"]["requests"]["storage"],
        accessModes=spec["accessModes"],
        storageClassName=STORAGE_CLASS,
        claimRef={key: metadata[key] for key in ("namespace", "name", "uid")},
    )


def needs_volume(claim: dict[str, Any]) -> bool:
    """Whether a PersistentVolumeClaim of this StorageClass has no volume yet."""
    spec = claim["spec"]
    pending = spec.get("storageClassName") == STORAGE_CLASS and not spec.get("volumeName")
    return pending and "deletionTimestamp" not in claim["metadata"]


def provision(api: Api, config: ClusterConfig) -> None:
    """Create volumes for pending claims, and delete the PersistentVolumes of deleted claims."""
    assert config.node is not None
    for claim in filter(needs_volume, api.get("/api/v1/persistentvolumeclaims")["items"]):
        created = build_volume_for_claim(claim, config.volumes, config.node.name)
        Path(created["spec"]["local"]["path"]).mkdir(exist_ok=True)
        api.ensure(VOLUMES, created)
    for each in api.get(VOLUMES)["items"]:
        if each["spec"].get("storageClassName") == STORAGE_CLASS and each["status"].get("phase") == "Released":
            api.delete(f"{VOLUMES}/{each['metadata']['name']}")


def main(folder: Path) -> None:
    """Run the provisioner until the process is killed."""
    config = ClusterConfig.load(folder)
    api = Api(config.admin_kubeconfig)
    api.ensure("/apis/storage.k8s.io/v1/storageclasses", storage_class())
    while True:
        try:
            provision(api, config)
        except (httpx.HTTPStatusError, httpx.TransportError) as error:
            print(error, file=sys.stderr, flush=True)
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
