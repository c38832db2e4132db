"""Builds the objects of an attempt: output claim, ConfigMap, Job.

Names and contents depend only on the job, the attempt number and the configuration, so building them again gives the
same objects.
"""

from __future__ import annotations

import json
import math

from kubernetes.utils.quantity import parse_quantity

from finetune_api.base import Model, Quantity
from finetune_api.exit_codes import NON_RETRYABLE
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
from finetune_operator.core.actions import Create
from finetune_operator.core.objects import JsonObject
from finetune_operator.core.observed import ObservedJob

TMP_DIR = "/tmp"  # noqa: S108 an emptyDir of the pod
SHARED_MEMORY_DIR = "/dev/shm"  # noqa: S108
INTERRUPTION_EXIT_CODES = (0, 75, 137, 143)
"""Exit codes of pods that were suspended or deleted: a rule that fails the Job on them would end it for good."""


def build_attempt(job: ObservedJob, parsed: FineTuneJob, number: int, config: Config) -> tuple[Create, ...]:
    """All objects of an attempt in the order of their creation; the Job is last."""
    config_map = Create("configmaps", build_config_map(job, number))
    attempt_job = Create("jobs", build_job(job, parsed, number, config))
    if parsed.spec.output.destination is not None:
        return config_map, attempt_job
    claim = Create("persistentvolumeclaims", build_output_claim(job, config), accept_existing=True)
    return claim, config_map, attempt_job


def build_output_claim(job: ObservedJob, config: Config) -> JsonObject:
    """The claim for the output of a job without `output.destination`; no owner, so the model outlives the job."""
    claim = config.output_claim
    spec: JsonObject = {
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


def build_config_map(job: ObservedJob, number: int) -> JsonObject:
    """The ConfigMap with the job as the trainer of this attempt reads it."""
    manifest = {
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
        "data": {SPEC_KEY: json.dumps(manifest, indent=2)},
    }


def build_job(job: ObservedJob, parsed: FineTuneJob, number: int, config: Config) -> JsonObject:
    """The Indexed Job of one attempt; it never retries, because each retry is a new attempt."""
    nodes = parsed.spec.resources.nodes
    metadata = _metadata(job, number)
    metadata["labels"] |= _queue_labels(parsed)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            # A queue decides when the Job starts; unsuspended, it could start pods before the queue has seen it.
            "suspend": parsed.spec.queue_name is not None,
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _pod_failure_policy(),
            "template": {
                "metadata": {"labels": _labels(job, number)},
                "spec": _pod_spec(parsed, attempt_name(job.key.name, number), number, config),
            },
        },
    }


def _pod_failure_policy() -> JsonObject:
    """The first match applies, so disruptions come before crashes; the last rule only reports the exit code."""
    permanent = {"containerName": TRAINER_CONTAINER, "operator": "In", "values": sorted(NON_RETRYABLE)}
    crash = {"containerName": TRAINER_CONTAINER, "operator": "NotIn", "values": list(INTERRUPTION_EXIT_CODES)}
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": permanent},
            {"action": "FailJob", "onExitCodes": crash},
        ]
    }


def _queue_labels(parsed: FineTuneJob) -> dict[str, str]:
    """Labels for Kueue; on the Job only, because Kueue would queue labeled pods a second time."""
    labels = {
        QUEUE_LABEL: parsed.spec.queue_name,
        QUEUE_PRIORITY_LABEL: parsed.spec.workload_priority_class_name,
    }
    return {label: value for label, value in labels.items() if value is not None}


def _pod_spec(parsed: FineTuneJob, config_map: str, number: int, config: Config) -> JsonObject:
    runtime, trainer = parsed.spec.runtime, config.trainer
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
        "containers": [_container(parsed, number, config)],
        "volumes": _volumes(parsed, config_map, config),
        **_scheduling(parsed, config),
    }


def _scheduling(parsed: FineTuneJob, config: Config) -> JsonObject:
    """Scheduling and identity of the pod; the configuration takes precedence over the job."""
    runtime, trainer = parsed.spec.runtime, config.trainer
    secrets = {it.name: it.manifest() for it in (*runtime.image_pull_secrets, *trainer.image_pull_secrets)}
    fields: JsonObject = {
        "imagePullSecrets": list(secrets.values()),
        "nodeSelector": {**(runtime.node_selector or {}), **trainer.node_selector},
        "tolerations": [it.manifest() for it in (*runtime.tolerations, *trainer.tolerations)],
        "affinity": {**_manifest(runtime.affinity), **_manifest(trainer.affinity)},
        "priorityClassName": trainer.priority_class_name or runtime.priority_class_name,
        "schedulerName": trainer.scheduler_name or runtime.scheduler_name,
        "serviceAccountName": trainer.service_account_name or runtime.service_account_name,
    }
    return {field: value for field, value in fields.items() if value}


def _manifest(model: Model | None) -> JsonObject:
    return model.manifest() if model is not None else {}


def _container(parsed: FineTuneJob, number: int, config: Config) -> JsonObject:
    runtime = parsed.spec.runtime
    return {
        "name": TRAINER_CONTAINER,
        "image": runtime.image or config.trainer.image,
        "imagePullPolicy": runtime.image_pull_policy or config.trainer.image_pull_policy,
        "command": _command(number),
        "env": _env(parsed, number, config),
        # Of several sources with the same key, Kubernetes uses the last.
        "envFrom": [it.manifest() for it in (*runtime.env_from, *config.trainer.env_from)],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": METRICS_PORT}],
        "resources": _resources(parsed, config),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _volume_mounts(parsed),
    }


def _command(number: int) -> list[str]:
    options = {
        "--claims-dir": CLAIMS_DIR,
        "--attempt": str(number),
        "--metrics-port": str(METRICS_PORT),
        "--termination-log": TERMINATION_LOG,
    }
    return ["finetune", "run", f"{SPEC_DIR}/{SPEC_KEY}", *(it for option in options.items() for it in option)]


def _env(parsed: FineTuneJob, number: int, config: Config) -> list[JsonObject]:
    """Environment variables: the operator's, overridden by the job's, overridden by the configuration's.

    Kubernetes lets each of them override what comes from `envFrom`.
    """
    downloads = CACHE_DIR if parsed.spec.runtime.cache_claim else SCRATCH_DIR
    defaults = {"HOME": SCRATCH_DIR, "HF_HOME": f"{downloads}/huggingface", "TMPDIR": TMP_DIR}
    cpu = _or_default(parsed.spec.resources.cpu, config.trainer.resources.cpu)
    if cpu is not None:
        # By default torch starts a thread for every core of the node, not of the pod.
        defaults["OMP_NUM_THREADS"] = str(max(1, math.ceil(parse_quantity(cpu))))
    variables: dict[str, JsonObject] = {name: {"name": name, "value": value} for name, value in defaults.items()}
    for variable in (*(it.manifest() for it in parsed.spec.runtime.env), *config.trainer.env_manifests()):
        # `$(NAME)` can only refer to variables that come before, so an overridden variable moves to the end.
        variables.pop(variable["name"], None)
        variables[variable["name"]] = variable
    variables[ATTEMPT_ENV] = {"name": ATTEMPT_ENV, "value": str(number)}
    return list(variables.values())


def _resources(parsed: FineTuneJob, config: Config) -> JsonObject:
    resources, defaults = parsed.spec.resources, config.trainer.resources
    quantities: dict[str, Quantity | None] = {
        "cpu": _or_default(resources.cpu, defaults.cpu),
        "memory": _or_default(resources.memory, defaults.memory),
        "ephemeral-storage": _or_default(resources.ephemeral_storage, defaults.ephemeral_storage),
    }
    if resources.gpus_per_node and resources.device != "CPU":
        quantities[resources.gpu_resource] = resources.gpus_per_node
    requests = {name: str(quantity) for name, quantity in quantities.items() if quantity is not None}
    # A CPU limit would throttle the trainer while the node has idle cores.
    limits = {name: quantity for name, quantity in requests.items() if name != "cpu"}
    return {field: values for field, values in (("requests", requests), ("limits", limits)) if values}


def _or_default(value: Quantity | None, default: Quantity | None) -> Quantity | None:
    """The job's value, which may be 0, or the default."""
    return value if value is not None else default


def _volumes(parsed: FineTuneJob, config_map: str, config: Config) -> list[JsonObject]:
    size = _or_default(parsed.spec.resources.shared_memory, config.trainer.resources.shared_memory)
    shared_memory = {"medium": "Memory"} | ({"sizeLimit": str(size)} if size is not None else {})
    return [
        {"name": "job", "configMap": {"name": config_map}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": shared_memory},
        *(
            {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
            for claim, volume in _claim_volumes(parsed).items()
        ),
    ]


def mounted_claims(parsed: FineTuneJob) -> list[str]:
    """Every claim that the pod mounts, without duplicates."""
    runtime = parsed.spec.runtime
    cache = [runtime.cache_claim] if runtime.cache_claim else []
    return list(dict.fromkeys([*parsed.claims, *(it.claim for it in runtime.volumes), *cache]))


def _claim_volumes(parsed: FineTuneJob) -> dict[str, str]:
    """Volume name by claim; a claim that is mounted in several places is one volume."""
    return {claim: f"claim-{position}" for position, claim in enumerate(mounted_claims(parsed))}


def _volume_mounts(parsed: FineTuneJob) -> list[JsonObject]:
    """Of the claims in sources, only the one of the output is writable."""
    writable = claim_names([parsed.destination])
    volumes, runtime = _claim_volumes(parsed), parsed.spec.runtime
    mounts: list[JsonObject] = [
        {"name": "job", "mountPath": SPEC_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH_DIR},
        {"name": "tmp", "mountPath": TMP_DIR},
        {"name": "shared-memory", "mountPath": SHARED_MEMORY_DIR},
        *(
            {"name": volumes[claim], "mountPath": f"{CLAIMS_DIR}/{claim}", "readOnly": claim not in writable}
            for claim in parsed.claims
        ),
        *({"name": volumes[it.claim], "mountPath": it.mount_path, "readOnly": it.read_only} for it in runtime.volumes),
    ]
    if runtime.cache_claim:
        mounts.append({"name": volumes[runtime.cache_claim], "mountPath": CACHE_DIR})
    return mounts


def _labels(job: ObservedJob, number: int) -> dict[str, str]:
    return {JOB_LABEL: job.key.name, ATTEMPT_LABEL: str(number), **MANAGED_BY}


def _metadata(job: ObservedJob, number: int) -> JsonObject:
    owner = {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "name": job.key.name,
        "uid": job.uid,
        "controller": True,
        # True would require permission to update finalizers of the owner.
        "blockOwnerDeletion": False,
    }
    return {
        "name": attempt_name(job.key.name, number),
        "namespace": job.key.namespace,
        "labels": _labels(job, number),
        "ownerReferences": [owner],
    }
