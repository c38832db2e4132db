"""Runs Prometheus with a single scrape target."""

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
    """A context manager that runs the `prometheus` binary on a free port of the loopback interface."""

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._folder = folder

    def __enter__(self) -> Prometheus:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.fail("prometheus is not installed; fix: run `python -m harness setup` as root", pytrace=False)
        scrape = {"job_name": "finetune", "honor_labels": True, "static_configs": [{"targets": [self._target]}]}
        config = self._folder / "prometheus.json"
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        data = self._folder / "data"
        arguments = [f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
        self._process = subprocess.Popen([binary, *arguments], stderr=(self._folder / "prometheus.log").open("wb"))
        self._client = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def wait_for(self, query: str, timeout: float = 60) -> float:
        """Poll until a PromQL query returns a series, and return its value.

        Raises:
            AssertionError: no series within `timeout` seconds; shows the end of the Prometheus log.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                result = self._client.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
            except (httpx.TransportError, KeyError, ValueError):
                result = []
            if result:
                [series] = result
                return float(series["value"][1])
            time.sleep(0.5)
        log = (self._folder / "prometheus.log").read_text()[-2000:]
        raise AssertionError(f"no result of the query {query} in {timeout:.0f} s\n{log}")
