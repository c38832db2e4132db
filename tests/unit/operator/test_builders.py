"""What an attempt is made of: restricted, well named, and nothing the user did not ask for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from finetune_operator.builders import prepare_attempt, prepare_configmap, prepare_job, prepare_output_claim
from finetune_operator.config import Config
from finetune_operator.observed import ObservedJob
from unit.operator.model import make_job

LONGEST = "a" * 40
LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def pod_of(job: ObservedJob, config: Config | None = None) -> dict[str, Any]:
    assert job.document
    spec: dict[str, Any] = prepare_job(job, job.document, 1, config or Config())["spec"]["template"]["spec"]
    return spec


def container_of(job: ObservedJob, config: Config | None = None) -> dict[str, Any]:
    found: dict[str, Any] = pod_of(job, config)["containers"][0]
    return found


def test_trainer_pods_are_restricted() -> None:
    pod = pod_of(make_job())
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = pod["containers"][0]["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    assert {next(iter(it.keys() - {"name"})) for it in pod["volumes"]} <= {
        "configMap", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip


def test_every_derived_name_of_the_longest_job_is_a_dns_label() -> None:
    job = make_job(name=LONGEST)
    assert job.document
    creates = prepare_attempt(job, job.document, 100_000, Config())
    assert [it.resource for it in creates] == ["persistentvolumeclaims", "configmaps", "jobs"]
    for create in creates:
        name = create.manifest["metadata"]["name"]
        assert len(name) <= 63 - len("-0-abcde") and LABEL.match(name)


def test_the_trainer_gets_the_spec_as_the_user_wrote_it() -> None:
    job = make_job()
    configmap = prepare_configmap(job, 2)
    assert configmap["immutable"] is True and configmap["metadata"]["name"] == "job-a2"
    written = json.loads(configmap["data"]["job.json"])
    assert written["spec"] == job.spec
    assert written["metadata"] == {"name": "job", "namespace": "default", "uid": "uid-1", "generation": 1}


def test_only_the_outputs_claim_can_be_written_to() -> None:
    job = make_job(
        model={"source": "pvc://models/base"},
        data={"train": {"source": "pvc://captions/train"}},
        output={"destination": "pvc://models/tuned"},
    )
    mounts = {it["mountPath"]: it.get("readOnly", False) for it in container_of(job)["volumeMounts"]}
    assert mounts["/claims/models"] is False and mounts["/claims/captions"] is True
    assert mounts["/etc/finetune"] is True and mounts["/scratch"] is False


def test_a_job_with_a_destination_gets_no_claim_of_its_own() -> None:
    job = make_job(output={"destination": "pvc://models/tuned"})
    assert job.document
    assert [it.resource for it in prepare_attempt(job, job.document, 1, Config())] == ["configmaps", "jobs"]


def test_the_output_claim_outlives_the_job() -> None:
    claim = prepare_output_claim(make_job(), Config())
    assert "ownerReferences" not in claim["metadata"] and claim["metadata"]["name"] == "job-output"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


def test_all_but_cpu_is_limited_and_the_job_speaks_before_the_chart() -> None:
    config = Config.model_validate({"trainer": {"resources": {"cpu": "4", "memory": "8Gi", "sharedMemory": "1Gi"}}})
    job = make_job(resources={"gpusPerNode": 1, "memory": "2Gi"})
    resources = container_of(job, config)["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "2Gi", "nvidia.com/gpu": "1"}
    assert resources["limits"] == {"memory": "2Gi", "nvidia.com/gpu": "1"}
    shared = next(it for it in pod_of(job, config)["volumes"] if it["name"] == "shared-memory")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


@pytest.mark.parametrize(("cpu", "threads"), [("1500m", "2"), (3, "3"), ("100m", "1")])
def test_a_trainer_has_as_many_threads_as_cpus(cpu: int | str, threads: str) -> None:
    env = container_of(make_job(resources={"cpu": cpu}), Config())["env"]
    assert {"name": "OMP_NUM_THREADS", "value": threads} in env


def test_the_administrators_environment_wins() -> None:
    config = Config.model_validate({"trainer": {"env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]}})
    env = [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "HF_HOME", "value": "/scratch/elsewhere"}]
    found = {it["name"]: it.get("value") for it in container_of(make_job(runtime={"env": env}), config)["env"]}
    assert found["HF_HUB_OFFLINE"] == "1" and found["HF_HOME"] == "/scratch/elsewhere"
    assert found["HOME"] == "/scratch" and found["FINETUNE_ATTEMPT"] == "1"


def test_interruptions_stay_out_of_the_rule_for_crashes() -> None:
    job = make_job()
    assert job.document
    spec = prepare_job(job, job.document, 1, Config())["spec"]
    disruption, permanent, crash = spec["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert permanent["onExitCodes"]["values"] == [2, 77]
    assert crash["onExitCodes"]["operator"] == "NotIn" and crash["onExitCodes"]["values"] == [0, 75, 137, 143]
    assert spec["backoffLimit"] == 0 and spec["completions"] == spec["parallelism"] == 1
