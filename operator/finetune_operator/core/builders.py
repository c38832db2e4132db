"""The objects of an attempt, made from the job and the operator's configuration alone: ConfigMap, Job, output claim.

Names and contents are a function of the job and the attempt's number, so making them twice makes the same thing.
"""

from __future__ import annotations

import json
import math
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from finetune_api.base import Model, Quantity
from finetune_api.exit_codes import PERMANENT
from finetune_api.job import FineTuneJob
from finetune_api.names import (
    API_VERSION,
    ATTEMPT_ENV,
    ATTEMPT_LABEL,
    CACHE_DIR,
    CLAIMS_DIR,
    JOB_KIND,
    JOB_LABEL,
    MANAGED_BY,
    METRICS_PORT,
    METRICS_PORT_NAME,
    QUEUE_LABEL,
    QUEUE_PRIORITY_LABEL,
    SCRATCH_DIR,
    SPEC_DIR,
    SPEC_KEY,
    TERMINATION_LOG,
    TRAINER_CONTAINER,
    attempt_name,
    output_claim,
)
from finetune_api.sources import claim_names
from finetune_operator.config import Config
from finetune_operator.core.actions import Create, Manifest
from finetune_operator.core.observed import ObservedJob

TEMPORARY_DIR = "/tmp"  # noqa: S108 an emptyDir of the pod, nobody else's
SHARED_MEMORY_DIR = "/dev/shm"  # noqa: S108
NOT_A_CRASH = (0, 75, 137, 143)
"""Exit codes that a suspended or deleted pod may end with; a rule that failed the Job on them would end it for good."""


def prepare_attempt(job: ObservedJob, document: FineTuneJob, number: int, config: Config) -> tuple[Create, ...]:
    """Everything an attempt needs, in the order it is to be created; the Job comes last."""
    configmap = Create("configmaps", prepare_configmap(job, number))
    attempt = Create("jobs", prepare_job(job, document, number, config))
    if document.spec.output.destination is None:
        return Create("persistentvolumeclaims", prepare_output_claim(job, config), shared=True), configmap, attempt
    return configmap, attempt


def prepare_output_claim(job: ObservedJob, config: Config) -> Manifest:
    """The claim for the result of a job that names none; it has no owner, so that the model outlives the job."""
    claim = config.output_claim
    spec: dict[str, Any] = {
        "accessModes": claim.access_modes,
        "resources": {"requests": {"storage": claim.size}},
    }
    if claim.storage_class_name is not None:
        spec["storageClassName"] = claim.storage_class_name
    metadata = {
        "name": output_claim(job.key.name),
        "namespace": job.key.namespace,
        "labels": {JOB_LABEL: job.key.name, **MANAGED_BY},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def prepare_configmap(job: ObservedJob, number: int) -> Manifest:
    """The job as the trainer of this attempt reads it."""
    document = {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "metadata": {
            "name": job.key.name,
            "namespace": job.key.namespace,
            "uid": job.uid,
            "generation": job.generation,
        },
        "spec": job.spec,
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, number),
        "immutable": True,
        "data": {SPEC_KEY: json.dumps(document, indent=2)},
    }


def prepare_job(job: ObservedJob, document: FineTuneJob, number: int, config: Config) -> Manifest:
    """The Indexed Job of one attempt: it never retries by itself, for a retry is an attempt of its own."""
    nodes = document.spec.resources.nodes
    metadata = _metadata(job, number)
    metadata["labels"] |= _queue_labels(document)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            # A queue says when a Job may begin; without this a pod could start before the queue has heard of it.
            "suspend": document.spec.queue_name is not None,
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _pod_failure_policy(),
            "template": {
                "metadata": {"labels": _labels(job, number)},
                "spec": _pod(document, attempt_name(job.key.name, number), number, config),
            },
        },
    }


def _pod_failure_policy() -> Manifest:
    """The first rule that matches wins, so a disruption is told from a crash; the last only shows the exit code."""
    permanent = {"containerName": TRAINER_CONTAINER, "operator": "In", "values": sorted(PERMANENT)}
    crash = {"containerName": TRAINER_CONTAINER, "operator": "NotIn", "values": list(NOT_A_CRASH)}
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": permanent},
            {"action": "FailJob", "onExitCodes": crash},
        ]
    }


def _queue_labels(document: FineTuneJob) -> dict[str, str]:
    """What Kueue goes by; on the Job only, for on its pods they would ask for a place of their own."""
    asked = {
        QUEUE_LABEL: document.spec.queue_name,
        QUEUE_PRIORITY_LABEL: document.spec.workload_priority_class_name,
    }
    return {label: value for label, value in asked.items() if value is not None}


def _pod(document: FineTuneJob, configmap: str, number: int, config: Config) -> Manifest:
    runtime, trainer = document.spec.runtime, config.trainer
    group = runtime.fs_group or trainer.fs_group
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": trainer.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": runtime.run_as_user or trainer.run_as_user,
            "runAsGroup": group,
            "fsGroup": group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(document, number, config)],
        "volumes": _volumes(document, configmap, config),
        **_placement(document, config),
    }


def _placement(document: FineTuneJob, config: Config) -> Manifest:
    """Where the pod runs and as whom; where the administrator speaks too, he has the last word."""
    job, admin = document.spec.runtime, config.trainer
    secrets = {it.name: it.manifest() for it in (*job.image_pull_secrets, *admin.image_pull_secrets)}
    wanted: Manifest = {
        "imagePullSecrets": list(secrets.values()),
        "nodeSelector": {**(job.node_selector or {}), **admin.node_selector},
        "tolerations": [it.manifest() for it in (*job.tolerations, *admin.tolerations)],
        "affinity": {**_manifest(job.affinity), **_manifest(admin.affinity)},
        "priorityClassName": admin.priority_class_name or job.priority_class_name,
        "schedulerName": admin.scheduler_name or job.scheduler_name,
        "serviceAccountName": admin.service_account_name or job.service_account_name,
    }
    return {field: value for field, value in wanted.items() if value}


def _manifest(model: Model | None) -> Manifest:
    return model.manifest() if model is not None else {}


def _container(document: FineTuneJob, number: int, config: Config) -> Manifest:
    runtime = document.spec.runtime
    return {
        "name": TRAINER_CONTAINER,
        "image": runtime.image or config.trainer.image,
        "imagePullPolicy": runtime.image_pull_policy or config.trainer.image_pull_policy,
        "command": _command(number),
        "env": _environment(document, number, config),
        # Kubernetes hears the last here too.
        "envFrom": [it.manifest() for it in (*runtime.env_from, *config.trainer.env_from)],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": METRICS_PORT}],
        "resources": _resources(document, config),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(document),
    }


def _command(number: int) -> list[str]:
    options = {
        "--claims-dir": CLAIMS_DIR,
        "--attempt": str(number),
        "--metrics-port": str(METRICS_PORT),
        "--termination-log": TERMINATION_LOG,
    }
    return ["finetune", "run", f"{SPEC_DIR}/{SPEC_KEY}", *(word for option in options.items() for word in option)]


def _environment(document: FineTuneJob, number: int, config: Config) -> list[Manifest]:
    """Ours, then the job's, then the administrator's: where several speak, the last is heard.

    What comes from whole Secrets and ConfigMaps (`envFrom`) is heard only where none of these speaks.
    """
    downloads = CACHE_DIR if document.spec.runtime.cache_claim else SCRATCH_DIR
    ours = {"HOME": SCRATCH_DIR, "HF_HOME": f"{downloads}/huggingface", "TMPDIR": TEMPORARY_DIR}
    ours |= _threads(document, config)
    variables: dict[str, Manifest] = {name: {"name": name, "value": value} for name, value in ours.items()}
    for variable in (*(it.manifest() for it in document.spec.runtime.env), *config.trainer.env_manifests()):
        # A variable may speak of those before it, `$(OTHER)`: one that is said again stands where it was said last.
        variables.pop(variable["name"], None)
        variables[variable["name"]] = variable
    variables[ATTEMPT_ENV] = {"name": ATTEMPT_ENV, "value": str(number)}
    return list(variables.values())


def _resources(document: FineTuneJob, config: Config) -> Manifest:
    asked, default = document.spec.resources, config.trainer.resources
    wanted: dict[str, Quantity | None] = {
        "cpu": _first(asked.cpu, default.cpu),
        "memory": _first(asked.memory, default.memory),
        "ephemeral-storage": _first(asked.ephemeral_storage, default.ephemeral_storage),
    }
    if asked.gpus_per_node and asked.device != "CPU":
        wanted[asked.gpu_resource] = asked.gpus_per_node
    requests = {name: str(amount) for name, amount in wanted.items() if amount is not None}
    # A CPU limit would only slow the trainer down while the node has cycles to spare.
    limits = {name: amount for name, amount in requests.items() if name != "cpu"}
    return {name: amounts for name, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _first(asked: Quantity | None, default: Quantity | None) -> Quantity | None:
    """What the job asks for, be it 0, or else the default."""
    return asked if asked is not None else default


def _threads(document: FineTuneJob, config: Config) -> Manifest:
    """As many threads as the pod asks CPUs for: by itself torch would take every core it sees on the node."""
    cpu = _first(document.spec.resources.cpu, config.trainer.resources.cpu)
    return {} if cpu is None else {"OMP_NUM_THREADS": str(max(1, math.ceil(parse_quantity(cpu))))}


def _volumes(document: FineTuneJob, configmap: str, config: Config) -> list[Manifest]:
    shared = _first(document.spec.resources.shared_memory, config.trainer.resources.shared_memory)
    memory = {"medium": "Memory"} | ({"sizeLimit": str(shared)} if shared is not None else {})
    return [
        {"name": "job", "configMap": {"name": configmap}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": memory},
        *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in _claims(document).items()),
    ]


def mounted_claims(document: FineTuneJob) -> list[str]:
    """Every claim that the pod mounts, each once."""
    runtime = document.spec.runtime
    cache = [runtime.cache_claim] if runtime.cache_claim else []
    return list(dict.fromkeys([*document.claims, *(it.claim for it in runtime.volumes), *cache]))


def _claims(document: FineTuneJob) -> dict[str, str]:
    """The volume of each claim: one that is used in several ways is still one volume."""
    return {claim: f"claim-{position}" for position, claim in enumerate(mounted_claims(document))}


def _mounts(document: FineTuneJob) -> list[Manifest]:
    """Of the job's own claims only the one that takes the result can be written to."""
    written = claim_names([document.destination])
    volumes, runtime = _claims(document), document.spec.runtime
    mounts: list[Manifest] = [
        {"name": "job", "mountPath": SPEC_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH_DIR},
        {"name": "tmp", "mountPath": TEMPORARY_DIR},
        {"name": "shared-memory", "mountPath": SHARED_MEMORY_DIR},
        *(
            {"name": volumes[claim], "mountPath": f"{CLAIMS_DIR}/{claim}", "readOnly": claim not in written}
            for claim in document.claims
        ),
        *({"name": volumes[it.claim], "mountPath": it.mount_path, "readOnly": it.read_only} for it in runtime.volumes),
    ]
    if runtime.cache_claim:
        mounts.append({"name": volumes[runtime.cache_claim], "mountPath": CACHE_DIR})
    return mounts


def _labels(job: ObservedJob, number: int) -> dict[str, str]:
    return {JOB_LABEL: job.key.name, ATTEMPT_LABEL: str(number), **MANAGED_BY}


def _metadata(job: ObservedJob, number: int) -> Manifest:
    owner = {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "name": job.key.name,
        "uid": job.uid,
        "controller": True,
        # Blocking the owner's deletion would need a permission on its finalizers.
        "blockOwnerDeletion": False,
    }
    return {
        "name": attempt_name(job.key.name, number),
        "namespace": job.key.namespace,
        "labels": _labels(job, number),
        "ownerReferences": [owner],
    }
