"""The objects of an attempt: restricted pods, valid names, and every setting of job and configuration."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from finetune_api.base import Model
from finetune_api.resources import Resources
from finetune_api.runtime import Runtime
from finetune_operator.config import Config
from finetune_operator.core.builders import build_attempt, build_config_map, build_job, build_output_claim
from finetune_operator.core.observed import ObservedJob
from unit.operator.simulation import make_job

LONGEST = "a" * 40
LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")


def pod_of(job: ObservedJob, config: Config | None = None) -> dict[str, Any]:
    assert job.parsed
    spec: dict[str, Any] = build_job(job, job.parsed, 1, config or Config())["spec"]["template"]["spec"]
    return spec


def container_of(job: ObservedJob, config: Config | None = None) -> dict[str, Any]:
    found: dict[str, Any] = pod_of(job, config)["containers"][0]
    return found


def test_pods_meet_the_restricted_pod_security_standard() -> None:
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


def test_derived_names_of_the_longest_job_name_are_dns_labels() -> None:
    job = make_job(name=LONGEST)
    assert job.parsed
    creates = build_attempt(job, job.parsed, 100_000, Config())
    assert [it.resource for it in creates] == ["persistentvolumeclaims", "configmaps", "jobs"]
    for create in creates:
        name = create.body["metadata"]["name"]
        assert len(name) <= 63 - len("-0-abcde") and LABEL.match(name)


def test_config_map_contains_the_spec_unchanged() -> None:
    job = make_job()
    configmap = build_config_map(job, 2)
    assert configmap["immutable"] is True and configmap["metadata"]["name"] == "job-a2"
    written = json.loads(configmap["data"]["job.json"])
    assert written["spec"] == job.spec
    assert written["metadata"] == {"name": "job", "namespace": "default", "uid": "uid-1", "generation": 1}


def test_only_the_output_claim_is_writable() -> None:
    job = make_job(
        model={"source": "pvc://models/base"},
        data={"train": {"source": "pvc://captions/train"}},
        output={"destination": "pvc://models/tuned"},
    )
    mounts = {it["mountPath"]: it.get("readOnly", False) for it in container_of(job)["volumeMounts"]}
    assert mounts["/claims/models"] is False and mounts["/claims/captions"] is True
    assert mounts["/etc/finetune"] is True and mounts["/scratch"] is False


def test_no_output_claim_with_a_destination() -> None:
    job = make_job(output={"destination": "pvc://models/tuned"})
    assert job.parsed
    assert [it.resource for it in build_attempt(job, job.parsed, 1, Config())] == ["configmaps", "jobs"]


def test_output_claim_has_no_owner() -> None:
    claim = build_output_claim(make_job(), Config())
    assert "ownerReferences" not in claim["metadata"] and claim["metadata"]["name"] == "job-output"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


def test_resources_override_defaults_and_cpu_has_no_limit() -> None:
    config = Config.model_validate({"trainer": {"resources": {"cpu": "4", "memory": "8Gi", "sharedMemory": "1Gi"}}})
    job = make_job(resources={"gpusPerNode": 1, "memory": "2Gi"})
    resources = container_of(job, config)["resources"]
    assert resources["requests"] == {"cpu": "4", "memory": "2Gi", "nvidia.com/gpu": "1"}
    assert resources["limits"] == {"memory": "2Gi", "nvidia.com/gpu": "1"}
    shared = next(it for it in pod_of(job, config)["volumes"] if it["name"] == "shared-memory")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


@pytest.mark.parametrize(("cpu", "threads"), [("1500m", "2"), (3, "3"), ("100m", "1")])
def test_threads_equal_cpus(cpu: int | str, threads: str) -> None:
    env = container_of(make_job(resources={"cpu": cpu}), Config())["env"]
    assert {"name": "OMP_NUM_THREADS", "value": threads} in env


def test_env_of_the_config_overrides_env_of_the_job() -> None:
    config = Config.model_validate({"trainer": {"env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]}})
    env = [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "HF_HOME", "value": "/scratch/elsewhere"}]
    found = {it["name"]: it.get("value") for it in container_of(make_job(runtime={"env": env}), config)["env"]}
    assert found["HF_HUB_OFFLINE"] == "1" and found["HF_HOME"] == "/scratch/elsewhere"
    assert found["HOME"] == "/scratch" and found["FINETUNE_ATTEMPT"] == "1"


def test_overridden_variable_moves_behind_those_it_may_refer_to() -> None:
    config = Config.model_validate({"trainer": {"env": [{"name": "LIBS", "value": "$(ROOT)/lib"}]}})
    env = [
        {"name": "LIBS", "value": "x"},
        {"name": "ROOT", "value": "/data"},
        {"name": "HOME", "value": "$(ROOT)/home"},
    ]
    names = [it["name"] for it in container_of(make_job(runtime={"env": env}), config)["env"]]
    assert names.index("ROOT") < names.index("HOME") < names.index("LIBS") and len(names) == len(set(names))


def test_zero_is_not_replaced_by_the_default() -> None:
    asked = {"cpu": 0, "memory": "0", "ephemeralStorage": 0}
    resources = container_of(make_job(resources=asked), Config.model_validate(DEFAULTS))["resources"]
    assert {name: resources["requests"][name] for name in ("cpu", "memory", "ephemeral-storage")} == {
        "cpu": "0", "memory": "0", "ephemeral-storage": "0",
    }  # fmt: skip


DEFAULTS = {"trainer": {"resources": {"cpu": "4", "memory": "16Gi", "ephemeralStorage": "10Gi"}}}


def test_pod_failure_policy_rules() -> None:
    job = make_job()
    assert job.parsed
    spec = build_job(job, job.parsed, 1, Config())["spec"]
    disruption, permanent, crash = spec["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert permanent["onExitCodes"]["values"] == [2, 77, 78]
    assert crash["onExitCodes"]["operator"] == "NotIn" and crash["onExitCodes"]["values"] == [0, 75, 137, 143]
    assert spec["backoffLimit"] == 0 and spec["completions"] == spec["parallelism"] == 1


AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [{"key": "pool", "operator": "In", "values": ["a"]}],
                    "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}],
                }
            ]
        }
    },
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
        ]
    },
}
RUNTIME: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "envFrom": [{"prefix": "X_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "s", "optional": True}}],
    "nodeSelector": {"pool": "a", "disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": AFFINITY,
    "priorityClassName": "high",
    "schedulerName": "volcano",
    "serviceAccountName": "trainer",
}


def test_runtime_fields_are_set_on_the_pod() -> None:
    job = make_job(runtime={**RUNTIME, "runAsUser": 1000, "fsGroup": 2000})
    pod = pod_of(job)
    assert {key: pod[key] for key in RUNTIME.keys() - {"envFrom"}} == {
        key: value for key, value in RUNTIME.items() if key != "envFrom"
    }
    assert container_of(job)["envFrom"] == RUNTIME["envFrom"]
    security = pod["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (1000, 2000, 2000)
    assert pod["automountServiceAccountToken"] is False


def test_unset_runtime_fields_are_left_out() -> None:
    assert not pod_of(make_job()).keys() & RUNTIME.keys()
    assert container_of(make_job())["envFrom"] == []


def test_config_takes_precedence_over_runtime() -> None:
    admin: dict[str, Any] = {
        "imagePullSecrets": [{"name": "registry"}, {"name": "mirror"}],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "nodeSelector": {"pool": "b"},
        "tolerations": [{"key": "team", "value": "x"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "low",
        "schedulerName": "default-scheduler",
        "serviceAccountName": "restricted",
    }
    pod = pod_of(make_job(runtime=RUNTIME), config := Config.model_validate({"trainer": admin}))
    assert pod["nodeSelector"] == {"pool": "b", "disk": "ssd"}
    assert pod["tolerations"] == [*RUNTIME["tolerations"], *admin["tolerations"]]
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    assert pod["affinity"] == {**AFFINITY, **admin["affinity"]}
    assert [pod[it] for it in ("priorityClassName", "schedulerName", "serviceAccountName")] == [
        "low", "default-scheduler", "restricted",
    ]  # fmt: skip
    env_from = container_of(make_job(runtime=RUNTIME), config)["envFrom"]
    assert env_from == [*RUNTIME["envFrom"], {"configMapRef": {"name": "proxy"}}]


EVERY_FIELD: dict[str, dict[str, Any]] = {
    "runtime": {
        **RUNTIME,
        "image": "own:1",
        "imagePullPolicy": "Never",
        "env": [{"name": "A", "value": "1"}],
        "runAsUser": 1000,
        "fsGroup": 2000,
        "volumes": [{"claim": "more", "mountPath": "/more"}],
        "cacheClaim": "downloads",
    },
    "resources": {
        "gpusPerNode": 1,
        "gpuResource": "amd.com/gpu",
        "device": "CPU",
        "cpu": 8,
        "memory": "32Gi",
        "ephemeralStorage": "50Gi",
        "sharedMemory": "2Gi",
    },
}


@pytest.mark.parametrize(("part", "model"), [("runtime", Runtime), ("resources", Resources)])
def test_every_field_changes_the_pod(part: str, model: type[Model]) -> None:
    aliases = {str(field.alias) for field in model.model_fields.values()}
    assert aliases - {"nodes"} == EVERY_FIELD[part].keys(), "a field without a value here is not tested"
    base = {"gpusPerNode": 1} if part == "resources" else {}
    for field, value in EVERY_FIELD[part].items():
        without = {"gpusPerNode": 0} if field == "gpusPerNode" else base
        changed = pod_of(make_job(**{part: {**without, field: value}})) != pod_of(make_job(**{part: without}))
        assert changed, f"spec.{part}.{field} does not reach the pod"


def test_gpu_resource_is_requested_unless_device_is_cpu() -> None:
    resources = container_of(make_job(resources={"gpusPerNode": 1, "gpuResource": "amd.com/gpu"}))["resources"]
    assert resources["requests"] == resources["limits"] == {"amd.com/gpu": "1"}
    assert container_of(make_job(resources={"gpusPerNode": 1, "device": "CPU"}))["resources"] == {}


def test_env_from_secret_and_config_map() -> None:
    env = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}},
        {"name": "URL", "valueFrom": {"configMapKeyRef": {"name": "hub", "key": "url"}}},
    ]
    found = container_of(make_job(runtime={"env": env}))["env"]
    assert [it for it in found if "valueFrom" in it] == env


def test_job_overrides_ephemeral_storage_and_shared_memory() -> None:
    config = Config.model_validate({"trainer": {"resources": {"ephemeralStorage": "10Gi", "sharedMemory": "1Gi"}}})
    job = make_job(resources={"ephemeralStorage": "50Gi", "sharedMemory": 0})
    assert container_of(job, config)["resources"]["limits"]["ephemeral-storage"] == "50Gi"
    shared = next(it for it in pod_of(job, config)["volumes"] if it["name"] == "shared-memory")
    assert shared["emptyDir"]["sizeLimit"] == "0"


def test_config_sets_grace_period_and_output_claim() -> None:
    claim = {"size": "5Gi", "storageClassName": "fast", "accessModes": ["ReadWriteMany"]}
    config = Config.model_validate({"trainer": {"terminationGracePeriodSeconds": 7}, "outputClaim": claim})
    assert pod_of(make_job(), config)["terminationGracePeriodSeconds"] == 7
    assert build_output_claim(make_job(), config)["spec"] == {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast",
    }  # fmt: skip


def test_job_overrides_image_and_user() -> None:
    trainer = {"image": "chart:1", "imagePullPolicy": "Always", "runAsUser": 5, "fsGroup": 6}
    config = Config.model_validate({"trainer": trainer})
    job = make_job(runtime={"image": "own:1", "imagePullPolicy": "Never", "runAsUser": 7})
    container = container_of(job, config)
    assert (container["image"], container["imagePullPolicy"]) == ("own:1", "Never")
    assert container_of(make_job(), config)["imagePullPolicy"] == "Always"
    security = pod_of(job, config)["securityContext"]
    assert (security["runAsUser"], security["fsGroup"]) == (7, 6)


def test_claim_mounted_in_several_places_is_one_volume() -> None:
    job = make_job(
        data={"train": {"source": "pvc://shared/train"}, "test": {"source": "pvc://held-out/test"}},
        output={"destination": "pvc://shared/tuned"},
        runtime={
            "cacheClaim": "shared",
            "volumes": [
                {"claim": "shared", "mountPath": "/extra", "readOnly": True},
                {"claim": "more", "mountPath": "/more"},
            ],
        },
    )
    volumes = {it["name"]: it["persistentVolumeClaim"]["claimName"]
               for it in pod_of(job)["volumes"] if "persistentVolumeClaim" in it}  # fmt: skip
    assert sorted(volumes.values()) == ["held-out", "more", "shared"]
    mounts = {it["mountPath"]: (volumes[it["name"]], it.get("readOnly", False))
              for it in container_of(job)["volumeMounts"] if it["name"] in volumes}  # fmt: skip
    assert mounts == {
        "/claims/held-out": ("held-out", True), "/claims/shared": ("shared", False), "/extra": ("shared", True),
        "/more": ("more", False), "/cache": ("shared", False),
    }  # fmt: skip


@pytest.mark.parametrize(("runtime", "home"), [({}, "/scratch"), ({"cacheClaim": "downloads"}, "/cache")])
def test_hf_home_is_in_the_cache_claim(runtime: dict[str, Any], home: str) -> None:
    env = container_of(make_job(runtime=runtime))["env"]
    assert {"name": "HF_HOME", "value": f"{home}/huggingface"} in env


def test_queued_job_is_suspended_and_only_the_job_is_labeled() -> None:
    job = make_job(queueName="team", workloadPriorityClassName="urgent")
    assert job.parsed
    made = build_job(job, job.parsed, 1, Config())
    asked = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "urgent"}
    assert asked.items() <= made["metadata"]["labels"].items() and made["spec"]["suspend"] is True
    assert not asked.keys() & made["spec"]["template"]["metadata"]["labels"].keys()
    plain = make_job()
    assert plain.parsed
    made = build_job(plain, plain.parsed, 1, Config())
    assert made["spec"]["suspend"] is False and not asked.keys() & made["metadata"]["labels"].keys()
