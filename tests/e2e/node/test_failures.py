"""Failing, stalled and deleted jobs on a real node: their state, and the cause in their message."""

from __future__ import annotations

import time
from typing import Any

import pytest

from e2e.namespace import Namespace, condition, message, state, step, variant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


IMAGE = "localhost/no-such-trainer:1"


@pytest.fixture(scope="module", autouse=True)
def jobs(namespace: Namespace, example: dict[str, Any]) -> None:
    """Start the jobs of this module together, because they spend most of their time waiting."""
    modules = [{"name": "all", "parameters": ["*"], "optimizer": {"type": "SGD", "learningRate": 1e-3}}]
    missing_claim = variant(example, "missing-claim", training={"steps": 2, "batchSize": 8}, modules=modules)
    missing_claim["spec"]["output"]["destination"] = "pvc://later/missing-claim"
    missing_data = variant(example, "missing-data")
    missing_data["spec"]["data"]["train"]["source"] = "pvc://digits/trian"
    namespace.apply(variant(example, "missing-image", runtime={"image": IMAGE}))
    namespace.apply(missing_claim)
    namespace.apply(variant(example, "deleted", training={"epochs": 100, "batchSize": 16}))
    namespace.apply(variant(example, "out-of-memory", resources={"gpusPerNode": 0, "cpu": "500m", "memory": "200Mi"}))
    namespace.apply(missing_data)


def test_missing_image_is_reported_immediately_and_fails_after_the_deadline(namespace: Namespace) -> None:
    waiting = namespace.wait("missing-image", lambda job: IMAGE in message(job), "a message with the image", timeout=60)
    assert state(waiting) in ("Pending", "Failed")
    job = namespace.wait_for_state("missing-image", "Failed", timeout=120)
    assert job["status"]["attempts"][-1]["reason"] == "ImagePullFailed"
    assert IMAGE in message(job)


def test_deleting_a_running_job_deletes_its_jobs_and_pods(namespace: Namespace) -> None:
    namespace.wait("deleted", lambda job: step(job) > 0, "step 1", timeout=240)
    namespace.kubectl("delete", "ftj", "deleted", "--timeout=60s")
    deadline = time.monotonic() + 150
    while namespace.pods("deleted") or namespace.attempts("deleted"):
        assert time.monotonic() < deadline, "Jobs or pods remain after 150 s"
        time.sleep(0.2)


def test_missing_claim_stalls_the_job_until_it_exists(namespace: Namespace) -> None:
    stalled = namespace.wait_for_state("missing-claim", "Stalled", timeout=60)
    assert "later" in message(stalled)
    assert condition(stalled, "Stalled")["status"] == "True"
    assert namespace.attempts("missing-claim") == []
    namespace.create_claim("later")
    namespace.wait_for_state("missing-claim", "Succeeded", timeout=240)


def test_out_of_memory_reports_the_memory_limit(namespace: Namespace) -> None:
    job = namespace.wait_for_state("out-of-memory", "Failed", timeout=180)
    assert "200Mi" in message(job)
    assert "memory" in message(job)
    [attempt] = job["status"]["attempts"]
    assert (attempt["oomKilled"], attempt["reason"]) == (True, "OutOfMemory")
    assert condition(job, "Stalled")["status"] == "True"


def test_missing_data_is_reported_by_its_source(namespace: Namespace) -> None:
    failed = namespace.wait_for_state("missing-data", "Failed", timeout=180)
    assert "pvc://digits/trian" in message(failed)
    [attempt] = failed["status"]["attempts"]
    assert (attempt["exitCode"], attempt["reason"]) == (2, "InvalidJob")
