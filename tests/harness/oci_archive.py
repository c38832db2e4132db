"""Writes OCI image archives directly, for images that need no Dockerfile."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA_TYPE = "application/vnd.oci.image"


@dataclass(frozen=True)
class Entry:
    """An entry of an image layer: a file if it has content, a symlink if it has a target, otherwise a directory."""

    path: str
    mode: int = 0o755
    content: bytes | None = None
    target: str | None = None


def write(
    archive: Path,
    name: str,
    entries: Iterable[Entry],
    *,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> None:
    """Write an image with a single layer; `name` is its full reference, such as `localhost/pause:1`."""
    layer = _layer(entries)
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "config": {"Entrypoint": list(command), "Env": [f"{key}={value}" for key, value in (env or {}).items()]},
    }
    with tarfile.open(archive, "w") as tar:
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
            "config": _blob(tar, f"{MEDIA_TYPE}.config.v1+json", _json(config)),
            "layers": [_blob(tar, f"{MEDIA_TYPE}.layer.v1.tar", layer)],
        }
        descriptor = _blob(tar, f"{MEDIA_TYPE}.manifest.v1+json", _json(manifest))
        descriptor["annotations"] = {"io.containerd.image.name": name}
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [descriptor]}))
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))


def _layer(entries: Iterable[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode = entry.mode
            if entry.target is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.target
            elif entry.content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.content)
            tar.addfile(info, io.BytesIO(entry.content or b""))
    return buffer.getvalue()


def _blob(tar: tarfile.TarFile, media_type: str, content: bytes) -> dict[str, Any]:
    digest = _digest(content)
    _add(tar, f"blobs/{digest.replace(':', '/')}", content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
