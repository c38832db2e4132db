"""Jobs that cannot end well, on a real node: each ends in the state, and with the words, a person would want."""

from __future__ import annotations

import time
from typing import Any

import pytest

from e2e.namespace import Namespace, condition, message, state, step, variant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


IMAGE = "localhost/no-such-trainer:1"


@pytest.fixture(scope="module", autouse=True)
def applied(namespace: Namespace, example: dict[str, Any]) -> None:
    """The jobs of this file, started together: most of their time they wait."""
    plain = [{"name": "all", "parameters": ["*"], "optimizer": {"type": "SGD", "learningRate": 1e-3}}]
    claimless = variant(example, "claimless", training={"steps": 2, "batchSize": 8}, modules=plain)
    claimless["spec"]["output"]["destination"] = "pvc://later/claimless"
    dataless = variant(example, "dataless")
    dataless["spec"]["data"]["train"]["source"] = "pvc://digits/trian"
    namespace.apply(variant(example, "imageless", runtime={"image": IMAGE}))
    namespace.apply(claimless)
    namespace.apply(variant(example, "unwanted", training={"epochs": 100, "batchSize": 16}))
    namespace.apply(variant(example, "hungry", resources={"gpusPerNode": 0, "cpu": "500m", "memory": "200Mi"}))
    namespace.apply(dataless)


def test_an_image_that_does_not_exist_is_named_at_once_and_given_up_on(namespace: Namespace) -> None:
    waiting = namespace.wait("imageless", lambda job: IMAGE in message(job), "word of the image", timeout=60)
    assert state(waiting) in ("Pending", "Failed")
    job = namespace.wait_for_state("imageless", "Failed", timeout=120)
    assert job["status"]["attempts"][-1]["reason"] == "ImagePullFailed"
    assert IMAGE in message(job)


def test_a_job_deleted_mid_run_leaves_nothing_running(namespace: Namespace) -> None:
    namespace.wait("unwanted", lambda job: step(job) > 0, "a first step", timeout=240)
    namespace.kubectl("delete", "ftj", "unwanted", "--timeout=60s")
    deadline = time.monotonic() + 150
    while namespace.pods("unwanted") or namespace.attempts("unwanted"):
        assert time.monotonic() < deadline, "its children are still there"
        time.sleep(0.2)


def test_a_missing_claim_stalls_and_heals(namespace: Namespace) -> None:
    stalled = namespace.wait_for_state("claimless", "Stalled", timeout=60)
    assert "later" in message(stalled)
    assert condition(stalled, "Stalled")["status"] == "True"
    assert namespace.attempts("claimless") == []
    namespace.create_claim("later")
    namespace.wait_for_state("claimless", "Succeeded", timeout=240)


def test_out_of_memory_names_the_limit(namespace: Namespace) -> None:
    job = namespace.wait_for_state("hungry", "Failed", timeout=180)
    assert "200Mi" in message(job)
    assert "memory" in message(job)
    [attempt] = job["status"]["attempts"]
    assert (attempt["oomKilled"], attempt["reason"]) == (True, "OutOfMemory")
    assert condition(job, "Stalled")["status"] == "True"


def test_missing_data_says_what_is_missing(namespace: Namespace) -> None:
    failed = namespace.wait_for_state("dataless", "Failed", timeout=180)
    assert "pvc://digits/trian" in message(failed)
    [attempt] = failed["status"]["attempts"]
    assert (attempt["exitCode"], attempt["reason"]) == (2, "InvalidJob")
