"""The main example on a node: training, status, metrics, operator restart, output, suspend and resume."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoTokenizer

from e2e.namespace import NAMESPACE, SYSTEM, Namespace, condition, state, step, variant
from e2e.prometheus import Prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def test_main_example_trains_and_reports(namespace: Namespace, example: dict[str, Any], tmp_path: Path) -> None:
    name = example["metadata"]["name"]
    namespace.apply(example)

    # In step 1 the warmup factor is 0, so the learning rate is 0.
    running = namespace.wait(name, lambda job: step(job) > 1, "step 2", timeout=240)
    assert state(running) == "Running"
    assert condition(running, "Reconciling")["status"] == "True"
    assert running["status"]["progress"]["plannedSteps"] > step(running)
    _check_module_status(running)
    _check_pod_security(namespace, name)

    with Prometheus(f"{_operator_address(namespace)}:8080", tmp_path) as prometheus:
        rate = prometheus.wait_for(
            f'finetune_job_learning_rate{{namespace="{NAMESPACE}",name="{name}",module="visual"}}'
        )
        assert 0 < rate <= 1e-3

    before = step(namespace.job(name))
    namespace.node.kubectl(f"--namespace={SYSTEM}", "delete", "pod", "--all", "--wait=false")
    namespace.wait(name, lambda job: step(job) > before, "progress after deletion of the operator pod", timeout=120)

    namespace.kubectl("wait", f"ftj/{name}", "--for=condition=Succeeded", "--timeout=900s", timeout=930)
    _check_final_status(namespace, namespace.job(name))
    _check_output(namespace.node.claim_path(NAMESPACE, "models") / "two-optimizers")
    _check_table(namespace.kubectl("get", "ftj"))


def _check_module_status(job: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in job["status"]["modules"]}
    assert {name: row.get("optimizer") for name, row in rows.items()} == {
        "visual": "AdamW",
        "textual": "RMSprop",
        "temperature": None,
    }
    assert rows["temperature"]["frozen"] is True
    assert rows["visual"]["learningRate"] > 0


def _check_pod_security(namespace: Namespace, name: str) -> None:
    [pod] = namespace.pods(name)
    assert pod["spec"]["automountServiceAccountToken"] is False
    security = pod["spec"]["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]


def _operator_address(namespace: Namespace) -> str:
    pods = namespace.node.get("pods", f"--namespace={SYSTEM}")["items"]
    return str(pods[0]["status"]["podIP"])


def _check_final_status(namespace: Namespace, job: dict[str, Any]) -> None:
    name, status = job["metadata"]["name"], job["status"]
    assert namespace.attempts(name) == [f"{name}-a1"]
    assert status["attempt"] == 1
    assert status.get("restarts", 0) == 0
    assert status["progress"]["step"] == status["progress"]["plannedSteps"]
    assert status["output"]["destination"] == "pvc://models/two-optimizers"
    assert condition(job, "Reconciling")["status"] == "False"
    metrics = {metric["name"]: metric["value"] for metric in status["metrics"]}
    assert metrics["eval/recall_at_1"] > 0.4
    assert metrics["eval/zero_shot_accuracy"] > 0.4
    assert status["best"]["metric"] == "eval/recall_at_1"
    assert status["best"]["value"] >= metrics["eval/recall_at_1"]
    assert 0 < status["best"]["step"] <= status["progress"]["step"]
    reasons = [
        event["reason"] for event in namespace.get("events", f"--field-selector=involvedObject.name={name}")["items"]
    ]
    assert "Succeeded" in reasons


def _check_output(output: Path) -> None:
    model = AutoModel.from_pretrained(output)
    assert AutoTokenizer.from_pretrained(output)("seven")["input_ids"]
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000
    run = json.loads((output / "run.json").read_text())
    assert run["spec"]["modules"][0]["optimizer"]["type"] == "AdamW"
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) > 50


def _check_table(table: str) -> None:
    header, row = table.splitlines()[:2]
    assert header.split() == ["NAME", "STATUS", "PROGRESS", "LOSS", "BEST", "ETA", "AGE"]
    assert re.search(r" Succeeded +(\d+)/\1 \(100%\) +\d+(\.\d+)? +0\.\d+ ", row), row


def test_suspended_job_resumes_from_its_checkpoint(namespace: Namespace, example: dict[str, Any]) -> None:
    namespace.apply(variant(example, "paused", checkpoint={"everySteps": 1000}))
    namespace.wait("paused", lambda job: step(job) >= 3, "step 3", timeout=180)
    namespace.kubectl("patch", "ftj", "paused", "--type=merge", "--patch", '{"spec": {"suspend": true}}')
    suspended = namespace.wait_for_state("paused", "Suspended", timeout=120)
    reached = suspended["status"]["checkpoint"]["step"]
    assert reached >= 3
    assert condition(suspended, "Suspended")["status"] == "True"
    time.sleep(3)
    assert namespace.pods("paused") == []

    namespace.kubectl("patch", "ftj", "paused", "--type=merge", "--patch", '{"spec": {"suspend": false}}')
    done = namespace.wait_for_state("paused", "Succeeded", "Failed", timeout=300)
    assert state(done) == "Succeeded"
    assert done["status"]["attempt"] == 2
    assert [attempt["reason"] for attempt in done["status"]["attempts"]] == ["Suspended", "Succeeded"]
    rows = (namespace.node.claim_path(NAMESPACE, "models") / "paused" / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, rows) if "loss" in row]
    assert steps == sorted(set(steps)), "steps are repeated or out of order"
