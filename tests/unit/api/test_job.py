"""The job as a whole: defaults, hash, claims, the generated CRD, exit codes and the termination message."""

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


def test_a_model_and_data_are_a_valid_job_and_everything_else_is_filled_in() -> None:
    spec = with_defaults(job(), "SequenceClassification").spec
    assert [module.name for module in spec.modules or []] == ["all"]
    assert spec.training.epochs == 3
    assert (spec.evaluation.metric, spec.evaluation.direction) == ("eval/accuracy", "Maximize")
    assert spec.checkpoint.every_epochs == 1
    assert spec.output.destination == "pvc://tiny-output"
    assert spec.resources.device == "CUDA"


def test_filling_in_twice_changes_nothing() -> None:
    once = with_defaults(job(), "Contrastive")
    assert with_defaults(once, "Contrastive") == once


def test_the_hash_is_of_what_determines_the_result() -> None:
    assert job().spec.content_hash() == job(suspend=True, resources={"cpu": 3}).spec.content_hash()
    assert job().spec.content_hash() != job(training={"seed": 1}).spec.content_hash()


def test_claims_are_named_once_and_the_output_comes_last() -> None:
    assert job().claims == ["models", "captions", "tiny-output"]
    assert job(output={"destination": "pvc://models/out"}).claims == ["models", "captions"]


@given(st.from_regex(r"\Apvc://[a-z][a-z0-9]{0,9}(/[a-z0-9_]{1,5}){0,3}\Z"))
def test_a_location_can_be_put_together_again(source: str) -> None:
    place = locate(source)
    assert f"pvc://{place.name}/{place.path}".removesuffix("/.") == source


@pytest.mark.parametrize("folder", ["crds", "helm/finetune-operator/files/crds"])
def test_the_committed_crd_is_fresh(folder: str) -> None:
    committed = (ROOT / folder / "finetunejobs.finetune.dev.yaml").read_text()
    assert committed == to_yaml(job_crd()), "run `make generate`"


@given(st.lists(st.text(max_size=300), max_size=80), st.text(max_size=1024))
def test_the_termination_message_always_fits(names: list[str], message: str) -> None:
    report = Report(
        reason="Succeeded",
        message=message,
        metrics=[Metric(name=name, value=1.0) for name in names],
        modules=[ModuleStatus(name=name) for name in names],
    )
    text = report.termination_message()
    assert len(text.encode()) <= 4096
    assert Report.model_validate_json(text).reason == "Succeeded"


def test_exit_codes_mean_what_the_table_says() -> None:
    assert set(NON_RETRYABLE) == {2, 77}
    assert (outcome_of_exit_code(75).retryable, outcome_of_exit_code(75).consumes_retry) == (True, False)
    assert (outcome_of_exit_code(1).retryable, outcome_of_exit_code(1).consumes_retry) == (True, True)
    assert (outcome_of_exit_code(139).reason, outcome_of_exit_code(None).reason) == ("Crashed", "Crashed")
    assert outcome_of_exit_code(137, oom_killed=True).reason == "OutOfMemory"
    assert outcome_of_exit_code(ExitCode.OUT_OF_GPU_MEMORY).retryable is False
