"""Helpers of end-to-end tests: kubectl in the namespace of the tests, and access to fields of a FineTuneJob."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.api import Api
from harness.node import Node

ROOT = Path(__file__).parents[2]
NAMESPACE = "team"
SYSTEM = "finetune-system"
TERMINAL = ("Succeeded", "Failed")

Job = dict[str, Any]


@dataclass(frozen=True)
class Namespace:
    """kubectl in the namespace of the tests.

    FineTuneJobs are read from the API directly: tests poll them, and starting kubectl takes 0.1 s of CPU time.
    """

    node: Node
    api: Api

    def kubectl(self, *args: str, input: str | None = None, timeout: float = 120) -> str:
        return self.node.kubectl(f"--namespace={NAMESPACE}", *args, input=input, timeout=timeout)

    def get(self, *args: str) -> Any:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, manifest: Job) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def create_claim(self, name: str) -> None:
        """Create a PersistentVolumeClaim of the default StorageClass."""
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})

    def job(self, name: str) -> Job:
        return self.api.get(f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs/{name}")

    def pods(self, name: str) -> list[Job]:
        found: list[Job] = self.get("pods", f"--selector=finetune.dev/job={name}")["items"]
        return found

    def attempts(self, name: str) -> list[str]:
        """The names of the Jobs of a FineTuneJob, one per attempt."""
        return sorted(
            job["metadata"]["name"] for job in self.get("jobs", f"--selector=finetune.dev/job={name}")["items"]
        )

    def wait(self, name: str, predicate: Callable[[Job], bool], what: str, timeout: float) -> Job:
        """Poll a FineTuneJob until the predicate is true.

        Raises:
            AssertionError: the job has ended or the timeout (in seconds) has expired; shows its status and logs.
        """
        deadline = time.monotonic() + timeout
        while True:
            job = self.job(name)
            if predicate(job):
                return job
            if time.monotonic() > deadline or state(job) in TERMINAL:
                log = self.node.try_kubectl(
                    f"--namespace={NAMESPACE}", "logs", f"--selector=finetune.dev/job={name}", "--tail=30"
                )
                status = json.dumps(job["status"], indent=1)
                raise AssertionError(f"{name} did not reach {what} in {timeout:.0f} s\n{status}\n{log.stdout}")
            time.sleep(0.2)

    def wait_for_state(self, name: str, *states: str, timeout: float = 120) -> Job:
        return self.wait(name, lambda job: state(job) in states, f"state {' or '.join(states)}", timeout)


def condition(job: Job, kind: str) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = job["status"].get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})


def state(job: Job) -> str:
    return str(condition(job, "Succeeded").get("reason", ""))


def message(job: Job) -> str:
    return str(condition(job, "Succeeded").get("message", ""))


def step(job: Job) -> int:
    return int(job["status"].get("progress", {}).get("step", 0))


def variant(example: Job, name: str, **spec: Any) -> Job:
    """A copy of the example with another name, fewer steps, and the given fields of the spec replaced."""
    job = copy.deepcopy(example)
    job["metadata"]["name"] = name
    job["spec"]["output"] = {"destination": f"pvc://models/{name}"}
    job["spec"]["training"] |= {"epochs": 2, "batchSize": 16}
    job["spec"]["resources"] = {"gpusPerNode": 0, "cpu": "500m", "memory": "3Gi"}
    job["spec"] |= spec
    return job
