"""A proxy in front of the real API server that injects faults before or after writes that a test selects."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

import httpx

Moment = Literal["before", "after"]
Fault = Callable[[str, str, bytes, Moment], bool]
"""Called before and after every write with method, path and body; True drops the response, and `before` the write."""

WRITES = ("POST", "PUT", "PATCH", "DELETE")
IGNORED_RESOURCES = ("/leases", "/events")


class Proxy:
    """Serves plain HTTP on loopback, and adds the credentials of the kubeconfig."""

    def __init__(self, kubeconfig: Path, fault: Fault) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        headers = {"Authorization": f"Bearer {user['token']}"}
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        self._client = httpx.Client(
            base_url=cluster["server"], verify=context, trust_env=False, timeout=400, headers=headers,
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip
        self.lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._client, fault, self.lock))
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def kubeconfig(self) -> Path:
        """A kubeconfig for the proxy."""
        server = f"http://127.0.0.1:{self._server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "proxy", "user": {"token": "unused"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "current-context": "proxy",
        }
        with tempfile.NamedTemporaryFile("w", delete=False, suffix=".json") as file:
            json.dump(config, file)
        return Path(file.name)


def _handler(client: httpx.Client, fault: Fault, lock: Lock) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            is_write = self.command in WRITES and not any(part in self.path for part in IGNORED_RESOURCES)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not is_write:
                self._relay(body)
                return
            # One write at a time, so that a fault affects exactly the write it was selected for.
            with lock:
                if fault(self.command, self.path, body, "before"):
                    return
                kept = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
                response = client.request(self.command, self.path, content=body, headers=kept)
                if fault(self.command, self.path, body, "after"):
                    return
            self._send_headers(response.status_code, response.headers.get("Content-Type", ""))
            self.wfile.write(response.content)

        def _relay(self, body: bytes) -> None:
            kept = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
            with client.stream(self.command, self.path, content=body, headers=kept) as response:
                self._send_headers(response.status_code, response.headers.get("Content-Type", ""))
                for chunk in response.iter_bytes():
                    self.wfile.write(chunk)
                    self.wfile.flush()

        def _send_headers(self, status: int, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()

        def handle(self) -> None:
            try:
                super().handle()
            except (OSError, httpx.HTTPError, ValueError):
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 the names http.server looks for

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
