"""Names shared by the operator and the trainer: the API group, labels, child objects, and paths in the trainer pod."""

from __future__ import annotations

from typing import Final, Literal

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "finetune.dev/v1alpha1"
JOB_KIND: Final = "FineTuneJob"
JOB_PLURAL: Final = "finetunejobs"

MAX_NAME: Final = 40
"""Maximum length of a job's name: the names derived from it must fit a DNS label of 63 characters."""

JOB_LABEL: Final = f"{GROUP}/job"
ATTEMPT_LABEL: Final = f"{GROUP}/attempt"
MANAGED_BY: Final = {"app.kubernetes.io/managed-by": "finetune-operator"}
TRAINER_CONTAINER: Final = "trainer"

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"

SPEC_KEY: Final = "job.json"
SPEC_DIR: Final = "/etc/finetune"
CLAIMS_DIR: Final = "/claims"
SCRATCH_DIR: Final = "/scratch"
TERMINATION_LOG: Final = "/dev/termination-log"

ATTEMPT_ENV: Final = "FINETUNE_ATTEMPT"
METRICS_PORT: Final = 9090
METRICS_PORT_NAME: Final = "metrics"

CACHE_DIR: Final = "/cache"
"""Mount path of `runtime.cacheClaim`."""
POD_DIRS: Final = (CLAIMS_DIR, SPEC_DIR, SCRATCH_DIR, CACHE_DIR, "/tmp")  # noqa: S108
"""Mount paths of the volumes of every trainer pod."""
RESERVED_DIRS: Final = (
    *POD_DIRS,
    *("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/venv", "/proc", "/sbin", "/sys", "/usr", "/var/run"),
)
"""Directories that `runtime.volumes` must not overlap: mount paths of the pod and directories of the image."""

CHECKPOINTS_FOLDER: Final = ".checkpoints"

State = Literal[
    "Queued", "Pending", "Running", "Restarting", "Suspending", "Suspended", "Stalled", "Succeeded", "Failed"
]


def attempt_name(job: str, number: int) -> str:
    """Name of the Job and the ConfigMap of an attempt; attempts are numbered from 1."""
    return f"{job}-a{number}"


def output_claim(job: str) -> str:
    """Name of the claim that the operator creates for a job without `output.destination`."""
    return f"{job}-output"
