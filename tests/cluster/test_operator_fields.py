"""Scheduling, queueing and time limits of a job on a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.framework import Namespace, Operator, wait_for
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster

PREFERENCE = {"matchExpressions": [{"key": "pool", "operator": "Gt", "values": ["1"]}]}
AFFINITY_TERM = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
PLACEMENT: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"disk": "ssd"},
    "affinity": {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": PREFERENCE}]},
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [AFFINITY_TERM]},
    },
    "priorityClassName": "high",
    "schedulerName": "volcano",
    "serviceAccountName": "trainer",
}


def test_every_runtime_field_is_set_on_the_pod(
    operator: Operator, namespace: Namespace, control_plane: Cluster
) -> None:
    control_plane.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 7},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer", "namespace": namespace.name}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": namespace.name}},
    )
    for claim in ("captions", "downloads", "more"):
        namespace.create_claim(claim)
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    volumes = [
        {"claim": "captions", "mountPath": "/again", "readOnly": True},
        {"claim": "more", "mountPath": "/opt/more"},
    ]
    fields = {
        "image": "custom:1", "imagePullPolicy": "Never", "runAsUser": 1000, "fsGroup": 2000, "cacheClaim": "downloads",
        "env": [{"name": "A", "value": "1"}], "envFrom": [{"prefix": "X_", "configMapRef": {"name": "settings"}}],
        "tolerations": [toleration], "volumes": volumes,
    }  # fmt: skip
    namespace.create_job(data={"train": {"source": "pvc://captions"}}, runtime=PLACEMENT | fields)
    pod = namespace.pod()["spec"]
    assert {key: pod[key] for key in PLACEMENT} == PLACEMENT
    assert toleration in pod["tolerations"] and pod["priority"] == 7
    assert not any("serviceAccountToken" in str(it) for it in pod["volumes"])
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("custom:1", "Never")
    assert container["envFrom"] == fields["envFrom"]
    assert {"name": "HF_HOME", "value": "/cache/huggingface"} in container["env"]
    mounts = {it["mountPath"]: it.get("readOnly", False) for it in container["volumeMounts"]}
    assert mounts.items() >= {"/again": True, "/claims/captions": True, "/opt/more": False, "/cache": False}.items()


def test_missing_cache_claim_stalls_the_job_until_it_exists(
    operator: Operator, namespace: Namespace, control_plane: Cluster
) -> None:
    namespace.create_job(
        runtime={"cacheClaim": "downloads", "envFrom": [{"configMapRef": {"name": "settings"}}]},
        data={"train": {"source": "hf://org/data"}, "test": {"source": "pvc://held-out/test"}},
    )
    namespace.wait_for_state("Stalled")
    message = namespace.condition("Stalled")["message"]
    assert all(it in message for it in ("Claim downloads not", "Claim held-out not", "ConfigMap settings not"))
    for claim in ("downloads", "held-out"):
        namespace.create_claim(claim)
    control_plane.kubectl("create", "configmap", "settings", "-n", namespace.name)
    namespace.pod()
    assert namespace.wait_for_state("Pending")["attempt"] == 1


def test_missing_service_account_is_named(operator: Operator, namespace: Namespace, control_plane: Cluster) -> None:
    namespace.create_job(runtime={"serviceAccountName": "trainer"})
    wait_for(lambda: "ServiceAccount trainer" in namespace.condition("Succeeded").get("message", ""))
    control_plane.kubectl("create", "serviceaccount", "trainer", "-n", namespace.name)
    assert wait_for(namespace.pods, 60)


def _admit(namespace: Namespace, name: str, admitted: bool) -> None:
    """Suspend or resume a Job, as Kueue does."""
    namespace.api.patch(namespace.path("jobs", name), {"spec": {"suspend": not admitted}})


def test_queue_suspends_and_resumes_the_job(operator: Operator, namespace: Namespace, control_plane: Cluster) -> None:
    namespace.create_job(queueName="team", workloadPriorityClassName="urgent")
    namespace.create_job("other")
    namespace.wait_for_state("Queued")
    (attempt,) = namespace.attempts()
    labels = attempt["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team" and labels["kueue.x-k8s.io/priority-class"] == "urgent"
    assert attempt["spec"]["suspend"] and not namespace.pods()
    _admit(namespace, "job-a1", True)
    namespace.run(namespace.pod())
    namespace.wait_for_state("Running")
    _admit(namespace, "job-a1", False)
    namespace.wait_for_state("Queued")
    assert "activeSince" not in wait_for(lambda: (it := namespace.status()).get("activeSeconds") is not None and it)
    wait_for(lambda: not namespace.pods())
    _admit(namespace, "job-a1", True)
    namespace.terminate(namespace.pod(), 0)
    assert namespace.wait_for_state("Succeeded")["attempt"] == 1
    wide = control_plane.kubectl(
        "get", "ftj", "-n", namespace.name, "-o", "wide", "--field-selector=spec.queueName=team"
    )
    header, *rows = wide.splitlines()
    assert "QUEUE" in header and [row.split()[0] for row in rows] == ["job"] and "team" in rows[0]


def test_suspending_a_queued_job_deletes_its_job(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job(queueName="team")
    namespace.wait_for_state("Queued")
    namespace.set_suspend(True)
    namespace.wait_for_state("Suspended")
    assert not namespace.attempts()
    namespace.set_suspend(False)
    assert namespace.wait_for_state("Queued")["attempt"] == 2
    (attempt,) = namespace.attempts()
    assert attempt["metadata"]["name"] == "job-a2" and attempt["spec"]["suspend"]


def test_exceeded_active_deadline_stops_pods_with_grace_period(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job(activeDeadlineSeconds=10_000)
    pod = namespace.pod()
    namespace.bind(pod)
    namespace.run(pod)
    assert namespace.wait_for_state("Running")["activeSince"]
    namespace.api.patch(namespace.path("finetunejobs", "job"), {"spec": {"activeDeadlineSeconds": 2}})
    status = namespace.wait_for_state("Failed")
    assert namespace.condition("Stalled")["reason"] == "DeadlineExceeded"
    assert "spec.activeDeadlineSeconds" in namespace.condition("Succeeded")["message"]
    assert status["attempts"][0]["reason"] == "DeadlineExceeded" and status["activeSeconds"] >= 2
    wait_for(lambda: not namespace.attempts())
    (pod,) = namespace.pods()
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 120
    namespace.force_delete(pod)


def test_jobs_pods_and_config_maps_are_deleted_after_the_ttl(operator: Operator, namespace: Namespace) -> None:
    namespace.create_job()
    namespace.terminate(namespace.pod(1), 75)
    report = '{"reason": "Succeeded", "message": "done", "progress": {"step": 40, "plannedSteps": 40}}'
    namespace.terminate(namespace.pod(2), 0, report)
    namespace.wait_for_state("Succeeded")
    series = f'finetune_job_step{{name="job",namespace="{namespace.name}"}}'
    assert series in operator.metrics() and len(namespace.attempts()) == 2
    namespace.api.patch(namespace.path("finetunejobs", "job"), {"spec": {"ttlSecondsAfterFinished": 1}})
    wait_for(lambda: namespace.status().get("cleanupTime"))
    assert not namespace.attempts() and not namespace.pods(1) and not namespace.pods(2)
    configmaps = [it["metadata"]["name"] for it in namespace.api.get(namespace.path("configmaps"))["items"]]
    assert not [name for name in configmaps if name.startswith("job-a")]
    assert namespace.api.find(namespace.path("persistentvolumeclaims", "job-output"))
    assert namespace.state() == "Succeeded" and namespace.status()["progress"]["step"] == 40
    wait_for(lambda: series not in operator.metrics())
