"""A real Prometheus that scrapes one target, and answers one query."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx
import pytest


class Prometheus:
    """Debian's prometheus, on a port of its own, for as long as the `with` block."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder

    def __enter__(self) -> Prometheus:
        program = shutil.which("prometheus")
        if program is None:
            pytest.fail("prometheus is not installed: run `python -m harness setup` as root", pytrace=False)
        scrape = {"job_name": "finetune", "honor_labels": True, "static_configs": [{"targets": [self._target]}]}
        config = self._folder / "prometheus.json"
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        data = self._folder / "data"
        arguments = [f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
        self._process = subprocess.Popen([program, *arguments], stderr=(self._folder / "prometheus.log").open("wb"))
        self._client = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def wait_for(self, query: str, timeout: float = 60) -> float:
        """The value of the one series that a PromQL query finds, once it finds it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                found = self._client.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
            except (httpx.TransportError, KeyError, ValueError):
                found = []
            if found:
                [series] = found
                return float(series["value"][1])
            time.sleep(0.5)
        raise AssertionError(f"Prometheus never found {query}\n{(self._folder / 'prometheus.log').read_text()[-2000:]}")
