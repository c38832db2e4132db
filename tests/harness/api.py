"""A minimal client of the API server. Starting kubectl takes a second for each call."""

import base64
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any

import httpx


class Api:
    """Sends JSON requests to one API server with the credentials of a kubeconfig that the harness wrote."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._client = httpx.Client(
            base_url=cluster["server"], verify=_context(cluster, user), trust_env=False, timeout=10
        )

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read an object or a list.

        Raises:
            httpx.HTTPStatusError: the API server responded with an error.
        """
        return self._json(self._client.get(path, params=query))

    def post(self, path: str, body: dict[str, Any], **query: str) -> httpx.Response:
        """Send a create request and return the response without checking its status."""
        return self._client.post(path, json=body, params=query)

    def ensure(self, path: str, body: dict[str, Any]) -> None:
        """Create an object unless it already exists."""
        response = self.post(path, body)
        if response.status_code != httpx.codes.CONFLICT:
            response.raise_for_status()

    def delete(self, path: str) -> None:
        """Delete an object."""
        self._json(self._client.delete(path))

    def is_success(self, path: str) -> bool:
        """Whether a GET of this path succeeds."""
        try:
            return self._client.get(path).is_success
        except httpx.TransportError:
            return False

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        response.raise_for_status()
        body: dict[str, Any] = response.json()
        return body


def _context(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    # The ssl module loads client certificates only from files.
    with tempfile.NamedTemporaryFile() as file:
        for part in ("client-certificate-data", "client-key-data"):
            file.write(base64.b64decode(user[part]))
        file.flush()
        context.load_cert_chain(file.name)
    return context
