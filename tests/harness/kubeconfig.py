"""Writes kubeconfig files."""

import base64
import json
from pathlib import Path
from typing import Any

import trustme

from harness.certificates import write_private


def with_certificate(server: str, authority: trustme.CA, user: trustme.LeafCert) -> dict[str, Any]:
    """A kubeconfig with a client certificate."""
    certificate = _base64(user.cert_chain_pems[0].bytes())
    return _config(
        {"server": server, "certificate-authority-data": _base64(authority.cert_pem.bytes())},
        {"client-certificate-data": certificate, "client-key-data": _base64(user.private_key_pem.bytes())},
    )


def with_token(cluster: dict[str, Any], token: str) -> dict[str, Any]:
    """A kubeconfig with a bearer token; `cluster` is the cluster entry of another kubeconfig."""
    return _config(cluster, {"token": token})


def write(path: Path, config: dict[str, Any]) -> Path:
    """Write a kubeconfig, readable only by its owner. The format is JSON, a subset of YAML."""
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
