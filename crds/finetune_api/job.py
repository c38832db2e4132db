"""FineTuneJob: one fine-tuning run, as written in a manifest."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import DNS_1035_LABEL, Model, Rule, UniqueBy
from finetune_api.checkpoint import Checkpoint, Output
from finetune_api.data import Data
from finetune_api.evaluation import Evaluation
from finetune_api.model import ModelSource
from finetune_api.modules import Module
from finetune_api.names import API_VERSION, JOB_KIND, MAX_NAME, output_claim
from finetune_api.resources import Resources, Retry, Runtime
from finetune_api.sources import claims
from finetune_api.status import JobStatus
from finetune_api.training import Training

Task = Literal["Contrastive", "SequenceClassification"]

ALWAYS_MUTABLE = ("suspend",)
"""Spec fields that may change at any time; the rest may until the first attempt."""

DETERMINES_RESULT = ("model", "task", "data", "training", "evaluation", "modules", "unmatched", "checkpoint")
"""Spec fields that the result depends on; two jobs that agree in them train the same model."""


class JobSpec(Model):
    """What to train, on what, and how."""

    model: ModelSource
    """The model to start from."""
    task: Task | None = None
    """What the model learns to do (default: from the model's config)."""
    data: Data
    """The data."""
    training: Training = Training()
    """How long, in what batches, in which precision."""
    evaluation: Evaluation = Evaluation()
    """When it is evaluated, and by what."""
    modules: Annotated[list[Module], UniqueBy("name"), Field(min_length=1, max_length=64)] | None = None
    """The parts of the model and how each learns (default: one module `all` with AdamW)."""
    unmatched: Literal["Forbid", "Freeze"] = "Forbid"
    """Parameters that no module names: an error, or frozen."""
    checkpoint: Checkpoint = Checkpoint()
    """How often it can be resumed from."""
    output: Output = Output()
    """Where the result goes."""
    resources: Resources = Resources()
    """What the trainer pod asks for."""
    runtime: Runtime = Runtime()
    """What the trainer pod runs."""
    retry: Retry = Retry()
    """What happens after a crash."""
    suspend: bool = False
    """Stop, with a checkpoint; go on when it is false again."""

    def content_hash(self) -> str:
        """SHA-256 (hex) of what determines the result."""
        document = {key: value for key, value in self.manifest().items() if key in DETERMINES_RESULT}
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class Metadata(Model):
    """The part of a Kubernetes object's metadata that we read; the rest is kept away."""

    model_config = ConfigDict(extra="ignore", strict=False)

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int = 1
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    resource_version: str | None = None


class FineTuneJob(Model):
    """One fine-tuning run."""

    rules = (
        Rule(
            field="metadata.name",
            message=f"metadata.name must be a DNS label that starts with a letter, of at most {MAX_NAME} characters",
            cel=f"self.metadata.name.matches('{DNS_1035_LABEL}') && self.metadata.name.size() <= {MAX_NAME}",
            holds=lambda it: bool(re.match(DNS_1035_LABEL, it.metadata.name)) and len(it.metadata.name) <= MAX_NAME,
        ),
    )

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["FineTuneJob"] = JOB_KIND
    metadata: Metadata
    spec: JobSpec
    """What is wanted."""
    status: JobStatus | None = None
    """What is."""

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def destination(self) -> str:
        """Where the result goes, the default filled in."""
        return self.spec.output.destination or f"pvc://{output_claim(self.name)}"

    @property
    def claims(self) -> list[str]:
        """Every claim the trainer needs, each once, the output's last."""
        data = self.spec.data
        validation = data.validation.source if data.validation else None
        return claims([self.spec.model.source, data.train.source, validation, self.destination])


def parse(document: dict[str, Any]) -> FineTuneJob:
    """Parse an object as the API server gives it; the operator's own view, so no line numbers.

    Raises:
        pydantic.ValidationError: the object does not obey the language.
    """
    return FineTuneJob.model_validate(document)
