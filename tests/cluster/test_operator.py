"""The operator against a real API server: every phase of a job, as kubectl shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.framework import Namespace, Operator, serve_metrics, wait_for
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster

REPORT = json.dumps(
    {
        "reason": "Succeeded",
        "message": "trained 40 steps",
        "progress": {"step": 40, "plannedSteps": 40, "percentage": 100.0, "epoch": 1.0},
        "metrics": [{"name": "eval/loss", "value": 0.25, "step": 40}],
        "output": {"destination": "pvc://job-output", "digest": "sha256:abc"},
    }
)
PAGE = """# TYPE finetune_step gauge
finetune_step 10
finetune_planned_steps 40
finetune_epoch 0.25
finetune_loss 1.5
finetune_evaluation{metric="loss"} 1.25
finetune_best_evaluation{metric="loss"} 1.125
finetune_best_evaluation_step{metric="loss"} 8
finetune_learning_rate{module="visual"} 0.001
finetune_gradient_norm{module="visual"} 2.5
finetune_module_parameters{module="visual"} 100
finetune_module_trainable_parameters{module="visual"} 100
finetune_module_info{module="visual",optimizer="SGD"} 1
python_info{version="3"} 1
"""


def test_job_runs_reports_progress_and_succeeds(
    operator: Operator, namespace: Namespace, control_plane: Cluster
) -> None:
    namespace.create_job()
    pod = namespace.pod()
    assert namespace.wait_for_state("Pending")["attempt"] == 1
    assert namespace.condition("Reconciling")["status"] == "True"
    page = PAGE
    with serve_metrics("127.0.7.1", lambda: page):
        namespace.run(pod, "127.0.7.1")
        namespace.wait_for_state("Running")
        status = wait_for(lambda: (it := namespace.status()).get("modules") and it)
        assert status["progress"]["step"] == 10 and status["progress"]["percentage"] == 25.0
        assert status["best"] == {"metric": "eval/loss", "value": 1.125, "step": 8}
        assert status["modules"][0] == {
            "name": "visual", "parameters": 100, "trainable": 100, "optimizer": "SGD",
            "learningRate": 0.001, "gradientNorm": 2.5, "frozen": False,
        }  # fmt: skip
        columns = control_plane.kubectl("get", "ftj", "-n", namespace.name).splitlines()
        assert columns[0].split() == ["NAME", "STATUS", "PROGRESS", "LOSS", "BEST", "ETA", "AGE"]
        assert columns[1].split()[:6] == ["job", "Running", "10/40", "(25%)", "1.5", "1.125"]
        wide = control_plane.kubectl("get", "ftj", "-n", namespace.name, "-o", "wide").splitlines()
        assert wide[0].split()[7:] == ["ATTEMPT", "QUEUE", "MODEL", "MESSAGE"]
    namespace.terminate(pod, 0, REPORT)
    control_plane.kubectl("wait", "-n", namespace.name, "--for=condition=Succeeded", "ftj/job", "--timeout=20s")
    _assert_success_is_final(namespace, operator)


def _assert_success_is_final(namespace: Namespace, operator: Operator) -> None:
    status = namespace.status()
    assert status["observedGeneration"] == 1
    assert status["progress"]["summary"] == "40/40 (100%)"
    assert status["progress"]["step"] == 40 and status["output"]["digest"] == "sha256:abc"
    assert status["attempts"][0]["exitCode"] == 0 and status["attempts"][0]["reason"] == "Succeeded"
    assert {it["type"]: it["status"] for it in status["conditions"]} == {
        "Succeeded": "True", "Reconciling": "False", "Stalled": "False", "Suspended": "False",
    }  # fmt: skip
    events = [it["reason"] for it in namespace.api.get(namespace.path("events"))["items"] if "FineTuneJob" in str(it)]
    assert sorted(events) == ["Pending", "Running", "Succeeded"]
    lines = [json.loads(line) for line in operator.log.read_text().splitlines() if line.startswith("{")]
    assert {
        (it["reason"], it["attempt"])
        for it in lines
        if (it.get("namespace"), it.get("name")) == (namespace.name, "job") and "reason" in it
    } == {("Pending", 1), ("Running", 1), ("Succeeded", 1)}
    assert f'finetune_job_learning_rate{{module="visual",name="job",namespace="{namespace.name}"}} 0.001' in (
        operator.metrics()
    )
    namespace.api.delete_with_options(namespace.path("jobs", "job-a1"), propagationPolicy="Background")
    wait_for(lambda: not namespace.attempts())
    namespace.set_suspend(True)
    wait_for(lambda: namespace.status()["observedGeneration"] == 2)
    namespace.set_suspend(False)
    wait_for(lambda: namespace.status()["observedGeneration"] == 3)
    assert namespace.state() == "Succeeded" and not namespace.attempts()


def test_objects_of_an_attempt(operator: Operator, namespace: Namespace) -> None:
    namespace.create_claim("captions")
    namespace.create_job(data={"train": {"source": "pvc://captions/train"}})
    namespace.pod()
    claim = namespace.api.get(namespace.path("persistentvolumeclaims", "job-output"))
    assert "ownerReferences" not in claim["metadata"]
    configmap = namespace.api.get(namespace.path("configmaps", "job-a1"))
    written = json.loads(configmap["data"]["job.json"])
    assert configmap["immutable"] and written["spec"] == namespace.job()["spec"]
    assert written["metadata"]["uid"] == namespace.job()["metadata"]["uid"]
    container = namespace.pod()["spec"]["containers"][0]
    assert container["command"][:3] == ["finetune", "run", "/etc/finetune/job.json"]
    mounts = {it["mountPath"]: it.get("readOnly", False) for it in container["volumeMounts"]}
    assert mounts["/claims/captions"] is True and mounts["/claims/job-output"] is False
    assert {"name": "FROM_ADMIN", "value": "yes"} in container["env"]


@pytest.mark.parametrize(
    ("code", "container_reason", "reason", "message"),
    [
        (2, "Error", "InvalidJob", "no column caption"),
        (77, "Error", "OutOfGPUMemory", "no column caption"),
        (78, "Error", "Diverged", "no column caption"),
        (137, "OOMKilled", "OutOfMemory", "memory limit (2Gi) exceeded"),
        (1, "Error", "Crashed", "no column caption"),
    ],
)
def test_failed_job_reports_the_cause(
    operator: Operator, namespace: Namespace, code: int, container_reason: str, reason: str, message: str
) -> None:
    namespace.create_job(retry={"limit": 0})
    pod = namespace.pod()
    namespace.run(pod)
    namespace.terminate(pod, code, "Traceback...\nno column caption", container_reason)
    status = namespace.wait_for_state("Failed")
    stalled = namespace.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", reason)
    assert message in namespace.condition("Succeeded")["message"]
    attempt = status["attempts"][0]
    assert attempt["exitCode"] == code and attempt.get("oomKilled", False) == (container_reason == "OOMKilled")
    assert len(namespace.attempts()) == 1


def test_crash_is_retried_up_to_the_retry_limit(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job(retry={"limit": 1, "backoffSeconds": 4})
    namespace.terminate(namespace.pod(1), 1, "boom")
    status = namespace.wait_for_state("Restarting")
    assert "boom" in status["attempts"][0]["message"]
    namespace.terminate(namespace.pod(2), 1, "boom again")
    status = namespace.wait_for_state("Failed")
    assert status["restarts"] == 1 and status["attempt"] == 2
    assert [it["number"] for it in status["attempts"]] == [1, 2]
    message = namespace.condition("Succeeded")["message"]
    assert message == "retry limit (1) reached: attempt 2 exited with code 1: boom again"


@pytest.mark.parametrize("disrupted", [True, False])
def test_interruption_uses_no_retry(operator: Operator, namespace: Namespace, disrupted: bool) -> None:
    namespace.create_job(retry={"limit": 0, "backoffSeconds": 1})
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    status: dict[str, Any] = {"conditions": [target]} if disrupted else {}
    namespace.terminate(namespace.pod(1), 137 if disrupted else 75, **status)
    namespace.terminate(namespace.pod(2), 0, REPORT)
    found = namespace.wait_for_state("Succeeded")
    assert "restarts" not in found
    assert found["attempts"][0]["reason"] == ("Disrupted" if disrupted else "Interrupted")
    assert found["attempts"][0].get("disruption") == ("PreemptionByScheduler" if disrupted else None)


def test_suspend_and_resume(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job()
    pod = namespace.pod()
    namespace.bind(pod)
    namespace.run(pod)
    namespace.wait_for_state("Running")
    namespace.set_suspend(True)
    namespace.wait_for_state("Suspending")
    wait_for(lambda: namespace.pods()[0]["metadata"].get("deletionTimestamp"))
    namespace.terminate(pod, 75, '{"reason": "Interrupted", "message": "checkpoint at step 10"}')
    namespace.force_delete(pod)
    status = namespace.wait_for_state("Suspended")
    assert status["attempts"][0]["reason"] == "Suspended" and status["attempts"][0]["exitCode"] == 75
    assert namespace.condition("Suspended")["status"] == "True"
    assert namespace.condition("Reconciling")["status"] == "False"
    namespace.set_suspend(False)
    namespace.terminate(namespace.pod(2), 0, REPORT)
    assert "restarts" not in namespace.wait_for_state("Succeeded")


def test_missing_claim_and_config_map_stall_the_job_until_they_exist(
    operator: Operator, namespace: Namespace, control_plane: Cluster
) -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}}]
    namespace.create_job(data={"train": {"source": "pvc://captions/train"}}, runtime={"env": env})
    namespace.wait_for_state("Stalled")
    assert "PersistentVolumeClaim captions not found" in namespace.condition("Stalled")["message"]
    assert "ConfigMap settings not found" in namespace.condition("Stalled")["message"]
    assert namespace.condition("Reconciling")["status"] == "False" and "attempt" not in namespace.status()
    namespace.create_claim("captions")
    wait_for(lambda: "captions" not in namespace.condition("Stalled")["message"])
    control_plane.kubectl("create", "configmap", "settings", "--from-literal=a=1", "-n", namespace.name)
    namespace.pod()
    assert namespace.wait_for_state("Pending")["attempt"] == 1


def test_spec_is_mutable_until_an_attempt_exists(
    operator: Operator, namespace: Namespace, control_plane: Cluster
) -> None:
    namespace.create_job(data={"train": {"source": "pvc://captoins"}})
    namespace.wait_for_state("Stalled")
    namespace.create_claim("captions")
    change = json.dumps({"spec": {"data": {"train": {"source": "pvc://captions"}}}})
    control_plane.kubectl("patch", "ftj", "job", "-n", namespace.name, "--type=merge", "-p", change)
    namespace.pod()
    again = control_plane.try_kubectl(
        "patch", "ftj", "job", "-n", namespace.name, "--type=merge", "-p", '{"spec":{"training":{"epochs":9}}}'
    )
    assert again.returncode and "immutable" in again.stderr


def test_image_pull_error_is_reported_at_once_and_fails_after_the_deadline(
    operator: Operator, namespace: Namespace
) -> None:
    namespace.create_job()
    waiting = {"reason": "ErrImagePull", "message": "trainer:test: not found"}
    namespace.set_state(namespace.pod(), "Pending", {"waiting": waiting})
    wait_for(lambda: "cannot pull image trainer:test" in namespace.condition("Succeeded").get("message", ""))
    assert namespace.state() == "Pending"
    namespace.wait_for_state("Failed")
    assert namespace.condition("Stalled")["reason"] == "ImagePullFailed"
    wait_for(lambda: not namespace.attempts())
    assert namespace.status()["attempt"] == 1


def test_missing_secret_stalls_the_job_until_the_container_starts(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job()
    pod = namespace.pod()
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "token" not found'}
    namespace.set_state(pod, "Pending", {"waiting": waiting})
    namespace.wait_for_state("Stalled")
    assert 'secret "token" not found' in namespace.condition("Stalled")["message"]
    namespace.run(pod)
    namespace.wait_for_state("Running")
    assert namespace.condition("Stalled")["status"] == "False"


def test_deleting_a_job_deletes_everything_but_the_output_claim(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job()
    namespace.run(namespace.pod())
    namespace.wait_for_state("Running")
    namespace.api.delete(namespace.path("finetunejobs", "job"))
    wait_for(lambda: not namespace.attempts() and not namespace.pods())
    wait_for(lambda: namespace.api.find(namespace.path("configmaps", "job-a1")) is None)
    assert namespace.api.find(namespace.path("persistentvolumeclaims", "job-output"))
    namespace.create_job()
    namespace.pod()


def test_job_of_another_owner_with_the_same_name_is_not_touched(operator: Operator, namespace: Namespace) -> None:
    container = {"name": "x", "image": "x"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    body = {"metadata": {"name": "job-a1"}, "spec": {"suspend": True, "template": template}}
    namespace.api.post(namespace.path("jobs"), {"apiVersion": "batch/v1", "kind": "Job"} | body)
    namespace.create_job()
    namespace.wait_for_state("Stalled")
    assert "is not controlled by this FineTuneJob" in namespace.condition("Stalled")["message"]
    namespace.api.delete_with_options(namespace.path("jobs", "job-a1"), propagationPolicy="Background")
    namespace.pod()
    namespace.wait_for_state("Pending")


def test_deleted_attempt_is_followed_by_the_next(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job()
    namespace.run(namespace.pod())
    namespace.wait_for_state("Running")
    namespace.api.delete_with_options(namespace.path("jobs", "job-a1"), propagationPolicy="Background")
    namespace.pod(2)
    assert namespace.wait_for_state("Pending")["attempts"][0]["reason"] == "Deleted"


def test_probes_and_metrics_endpoint(operator: Operator) -> None:
    assert operator.status_code("/healthz") == 200 and operator.status_code("/readyz") == 200
    text = operator.metrics()
    for name in ("finetune_reconcile_total", "finetune_api_calls_total", "finetune_queue_depth", "finetune_jobs"):
        assert name in text
