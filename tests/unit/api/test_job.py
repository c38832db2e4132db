"""FineTuneJob: defaults, content hash, claims, the generated CRD, exit codes and the termination message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.crd import job_crd, to_yaml
from finetune_api.defaults import with_defaults
from finetune_api.exit_codes import NON_RETRYABLE, ExitCode, outcome_of_exit_code
from finetune_api.job import FineTuneJob, parse
from finetune_api.sources import locate
from finetune_api.status import Metric, ModuleStatus, Report

ROOT = Path(__file__).parents[3]


def job(**spec: Any) -> FineTuneJob:
    minimal = {"model": {"source": "pvc://models/clip"}, "data": {"train": {"source": "pvc://captions/train"}}}
    return parse(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "tiny"},
            "spec": minimal | spec,
        }
    )


def test_defaults_of_a_minimal_job() -> None:
    spec = with_defaults(job(), "SequenceClassification").spec
    assert [module.name for module in spec.modules] == ["all"]
    assert spec.training.epochs == 3
    assert (spec.evaluation.metric, spec.evaluation.direction) == ("eval/accuracy", "Maximize")
    assert spec.checkpoint.every_epochs == 1
    assert spec.output.destination == "pvc://tiny-output"
    assert spec.resources.device == "CUDA"


def test_defaulting_is_idempotent() -> None:
    once = with_defaults(job(), "Contrastive")
    assert with_defaults(once, "Contrastive") == once


def test_defaults_without_a_task_leave_the_evaluation_unset() -> None:
    spec = with_defaults(job(), None).spec
    assert (spec.task, spec.evaluation.metric, spec.evaluation.direction) == (None, None, None)
    assert (spec.training.micro_batch_size, spec.modules[0].schedule is None) == (32, False)


def test_set_fields_are_not_overridden_by_defaults() -> None:
    written = job(
        training={"steps": 7, "batchSize": 8, "microBatchSize": 4},
        evaluation={"metric": "eval/f1", "direction": "Minimize"},
        modules=[{"name": "head", "parameters": ["head.*"], "frozen": True}],
        checkpoint={"everySteps": 5},
        output={"destination": "pvc://models/out"},
        resources={"gpusPerNode": 1, "device": "CPU"},
    )
    spec = with_defaults(written, "CausalLM").spec
    assert spec.manifest() == written.spec.manifest() | {"task": "CausalLM"}
    assert spec.training.epochs is None


def test_effective_job_is_a_valid_manifest() -> None:
    manifest = with_defaults(job(), "Contrastive").manifest()
    assert parse(manifest).manifest() == manifest


def test_content_hash_covers_fields_that_determine_the_result() -> None:
    assert job().spec.content_hash() == job(suspend=True, resources={"cpu": 3}).spec.content_hash()
    assert job().spec.content_hash() != job(training={"seed": 1}).spec.content_hash()


def test_claims_are_distinct_and_output_is_last() -> None:
    assert job().claims == ["models", "captions", "tiny-output"]
    assert job(output={"destination": "pvc://models/out"}).claims == ["models", "captions"]


@given(st.from_regex(r"\Apvc://[a-z][a-z0-9]{0,9}(/[a-z0-9_]{1,5}){0,3}\Z"))
def test_location_round_trip(source: str) -> None:
    location = locate(source)
    assert f"pvc://{location.name}/{location.path}".removesuffix("/.") == source


@pytest.mark.parametrize("folder", ["crds", "helm/finetune-operator/files/crds"])
def test_committed_crd_is_up_to_date(folder: str) -> None:
    committed = (ROOT / folder / "finetunejobs.finetune.dev.yaml").read_text()
    assert committed == to_yaml(job_crd()), "run `make generate`"


@given(st.lists(st.text(max_size=300), max_size=80), st.text(max_size=1024))
def test_termination_message_fits_in_4096_bytes(names: list[str], message: str) -> None:
    report = Report(
        reason="Succeeded",
        message=message,
        metrics=[Metric(name=name, value=1.0) for name in names],
        modules=[ModuleStatus(name=name) for name in names],
    )
    text = report.termination_message()
    assert len(text.encode()) <= 4096
    assert Report.model_validate_json(text).reason == "Succeeded"


def test_outcomes_of_exit_codes() -> None:
    assert set(NON_RETRYABLE) == {2, 77, 78}
    assert (outcome_of_exit_code(75).retryable, outcome_of_exit_code(75).consumes_retry) == (True, False)
    assert (outcome_of_exit_code(1).retryable, outcome_of_exit_code(1).consumes_retry) == (True, True)
    assert (outcome_of_exit_code(139).reason, outcome_of_exit_code(None).reason) == ("Crashed", "Crashed")
    assert outcome_of_exit_code(137, oom_killed=True).reason == "OutOfMemory"
    assert outcome_of_exit_code(ExitCode.OUT_OF_GPU_MEMORY).retryable is False
