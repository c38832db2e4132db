"""Helpers of the cluster tests: the operator as a process that can be killed, and a simulated kubelet.

The operator is forked from a server that has imported it already, so that starting it takes half a second and a test
can kill it at every write.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

import finetune_operator
from finetune_api.names import ATTEMPT_LABEL, JOB_LABEL
from harness import api as harness_api

CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.finetune.dev.yaml"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["finetune_operator.runtime.manager"])

Object = dict[str, Any]


class Api(harness_api.Api):
    """A client of the API server with the requests that these tests need."""

    def patch(self, path: str, body: Object) -> Object:
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._json(self._client.patch(path, json=body, headers=headers))

    def delete_with_options(self, path: str, **options: Any) -> None:
        self._json(self._client.request("DELETE", path, json=options))

    def find(self, path: str) -> Object | None:
        response = self._client.get(path)
        return None if response.status_code == 404 else self._json(response)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Poll until the result is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)


@dataclass
class Namespace:
    """The namespace of one test, with its FineTuneJobs, Jobs and pods."""

    api: Api
    name: str

    def path(self, resource: str, name: str = "") -> str:
        groups = {"finetunejobs": "apis/finetune.dev/v1alpha1", "jobs": "apis/batch/v1"}
        return f"/{groups.get(resource, 'api/v1')}/namespaces/{self.name}/{resource}/{name}".rstrip("/")

    def create_job(self, name: str = "job", **spec: Any) -> None:
        merged = {
            "model": {"source": "hf://org/model"},
            "data": {"train": {"source": "hf://org/data"}},
            "resources": {"gpusPerNode": 0, "memory": "2Gi"},
            "retry": {"backoffSeconds": 1},
        } | spec
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": merged,
        }
        self.api.post(self.path("finetunejobs"), body)

    def create_claim(self, name: str) -> None:
        resources = {"requests": {"storage": "1Gi"}}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": resources}
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
        self.api.post(self.path("persistentvolumeclaims"), body)

    def job(self, name: str = "job") -> Object:
        return self.api.get(self.path("finetunejobs", name))

    def status(self, name: str = "job") -> Object:
        found: Object = self.job(name).get("status", {})
        return found

    def condition(self, kind: str, name: str = "job") -> Object:
        return next((it for it in self.status(name).get("conditions", []) if it["type"] == kind), {})

    def state(self, name: str = "job") -> str:
        return str(self.condition("Succeeded", name).get("reason", ""))

    def wait_for_state(self, state: str, name: str = "job", seconds: float = 20) -> Object:
        """Wait until the job is in a state, and return its status."""
        deadline = time.monotonic() + seconds
        while self.state(name) != state:
            assert time.monotonic() < deadline, f"waiting for {state}: {json.dumps(self.status(name), indent=1)}"
            time.sleep(0.05)
        return self.status(name)

    def set_suspend(self, value: bool, name: str = "job") -> None:
        self.api.patch(self.path("finetunejobs", name), {"spec": {"suspend": value}})

    def attempts(self, name: str = "job") -> list[Object]:
        found: list[Object] = self.api.get(self.path("jobs"), labelSelector=f"{JOB_LABEL}={name}")["items"]
        return found

    def pods(self, attempt: int = 1, name: str = "job") -> list[Object]:
        selector = f"{JOB_LABEL}={name},{ATTEMPT_LABEL}={attempt}"
        found: list[Object] = self.api.get(self.path("pods"), labelSelector=selector)["items"]
        return found

    def pod(self, attempt: int = 1, name: str = "job") -> Object:
        """Wait for the pod of an attempt, and return it."""
        found: Object = wait_for(lambda: self.pods(attempt, name))[0]
        return found

    def bind(self, pod: Object) -> None:
        """Bind a pod to a node, so that its deletion takes the grace period."""
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": "nowhere"}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        self.api.post(f"{self.path('pods', name)}/binding", body)

    def set_state(self, pod: Object, phase: str, state: Object, **status: Any) -> None:
        """Set phase and container state, as a kubelet does."""
        image = pod["spec"]["containers"][0]["image"]
        container = {"name": "trainer", "image": image, "imageID": "", "restartCount": 0, "state": state}
        container |= {"ready": "running" in state}
        body = {"status": {"phase": phase, "containerStatuses": [container], **status}}
        self.api.patch(f"{self.path('pods', pod['metadata']['name'])}/status", body)

    def run(self, pod: Object, address: str = "127.0.0.1") -> None:
        ready = [{"type": "Ready", "status": "True"}]
        running = {"running": {"startedAt": now()}}
        self.set_state(pod, "Running", running, podIP=address, podIPs=[{"ip": address}], conditions=ready)

    def terminate(self, pod: Object, code: int, message: str = "", reason: str = "", **status: Any) -> None:
        terminated = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message}
        terminated |= {"startedAt": now(), "finishedAt": now()}
        self.set_state(pod, "Failed" if code else "Succeeded", {"terminated": terminated}, **status)

    def force_delete(self, pod: Object) -> None:
        self.api.delete_with_options(self.path("pods", pod["metadata"]["name"]), gracePeriodSeconds=0)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_operator(arguments: list[str], environment: dict[str, str], log: str) -> None:
    from finetune_operator.__main__ import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = ["finetune-operator", *arguments]
    main()


class Operator:
    """The operator as a process."""

    def __init__(self, kubeconfig: Path, config: Path, log: Path, *options: str) -> None:
        self.metrics_port, self.health_port = free_port(), free_port()
        self.log = log
        ports = [f"--metrics-port={self.metrics_port}", f"--health-port={self.health_port}"]
        self._arguments = [f"--config={config}", *ports, *options]
        self._environment = {"KUBECONFIG": str(kubeconfig)}
        self.process: Any = None

    def start(self) -> Operator:
        arguments = (self._arguments, self._environment, str(self.log))
        self.process = FORKS.Process(target=_run_operator, args=arguments, daemon=True)
        self.process.start()
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def stop(self) -> int:
        self.process.terminate()
        self.process.join(20)
        return int(self.process.exitcode)

    def status_code(self, path: str) -> int:
        """Status code of an endpoint; 0 without a response."""
        port = self.metrics_port if path == "/metrics" else self.health_port
        try:
            return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text

    def wait_until_ready(self) -> Operator:
        wait_for(lambda: self.status_code("/readyz") == 200)
        return self


def documented_permissions() -> list[tuple[str, str, list[str], str]]:
    """The permissions in the docstring of `finetune_operator`: group, resource, verbs, where."""
    row = re.compile(r"^    (\S+)\s{2,}(\S+)\s{2,}([a-z, ]+?)\s{2,}(.+)$", re.MULTILINE)
    rows = row.findall(finetune_operator.__doc__ or "")
    return [("" if group == "(core)" else group, resource, verbs.split(", "), where)
            for group, resource, verbs, where in rows if group != "API"]  # fmt: skip


@contextmanager
def serve_metrics(address: str, page: Callable[[], str]) -> Iterator[None]:
    """Serve the metrics page of a trainer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page().encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((address, 9090), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
