"""Kubeconfig files: whom to talk to, and as whom."""

import base64
import json
from pathlib import Path
from typing import Any

from harness.certificates import Pair, write_private


def with_certificate(server: str, authority: bytes, pair: Pair) -> dict[str, Any]:
    """A kubeconfig whose user is the one the certificate names."""
    return _config(
        {"server": server, "certificate-authority-data": _base64(authority)},
        {"client-certificate-data": _base64(pair.certificate), "client-key-data": _base64(pair.key)},
    )


def with_token(cluster: dict[str, Any], token: str) -> dict[str, Any]:
    """A kubeconfig for the same cluster as another, with a bearer token."""
    return _config(cluster, {"token": token})


def write(path: Path, config: dict[str, Any]) -> Path:
    """Write a kubeconfig that only its owner may read. JSON is YAML, and every client reads it."""
    write_private(path, json.dumps(config, indent=1).encode())
    return path


def _config(cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
