"""Conditions, merge patches, events, and typed changes of status."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.status import AttemptStatus, Condition, JobStatus, Metric, Progress, Report
from finetune_operator.core import termination
from finetune_operator.core.changes import (
    AttemptChanges,
    ConditionChanges,
    ProgressChanges,
    StatusChanges,
    update_attempt,
    update_status,
)
from finetune_operator.core.status import (
    ConditionUpdate,
    build_status,
    is_progress_only,
    merge_patch,
    status_fields,
    transition_events,
    with_attempt,
    with_observed_generation,
)
from unit.operator.simulation import START, make_job


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), value)
    return result


STATUSES = st.builds(
    JobStatus,
    observed_generation=st.integers(-1, 5),
    attempt=st.none() | st.integers(0, 5),
    progress=st.none() | st.builds(Progress, step=st.integers(0, 5), samples_per_second=st.none() | st.floats(0, 9)),
    metrics=st.none() | st.lists(st.builds(Metric, name=st.just("train/loss"), value=st.floats(0, 9)), max_size=2),
)


@given(STATUSES, STATUSES)
def test_merge_patch_leads_from_one_status_to_the_other(old: JobStatus, new: JobStatus) -> None:
    assert apply_merge_patch(old.manifest(), merge_patch(old, new)) == new.manifest()
    assert not merge_patch(new, new)


def test_is_progress_only() -> None:
    old = JobStatus(progress=Progress(step=1))
    assert is_progress_only(merge_patch(old, JobStatus(progress=Progress(step=2))))
    assert not is_progress_only(merge_patch(old, JobStatus(progress=Progress(step=2), attempt=1)))
    assert not is_progress_only({})


def test_transition_time_changes_with_the_condition_status_only() -> None:
    job = make_job()
    first = build_status(job, ConditionUpdate("Pending", "a"), START)
    later = START.replace(year=2027)
    job = make_job(status=first.manifest())
    second = build_status(job, ConditionUpdate("Running", "b"), later)
    times = {it.type: it.last_transition_time for it in second.conditions}
    assert set(times.values()) == {START}
    third = build_status(job, ConditionUpdate("Failed", "c", "Crashed"), later)
    assert {it.type: it.last_transition_time for it in third.conditions}["Reconciling"] == later
    assert third.completion_time == later


def test_failure_emits_one_warning_event() -> None:
    job = make_job()
    failed = build_status(job, ConditionUpdate("Failed", "out of memory", "OutOfMemory"), START)
    (event,) = transition_events(job.status, failed)
    assert (event.type, event.reason, event.message) == ("Warning", "OutOfMemory", "out of memory")
    assert not transition_events(failed, failed)


def test_with_observed_generation_changes_nothing_else() -> None:
    status = build_status(make_job(), ConditionUpdate("Running", "step 1"), START, attempt=1)
    expected = status.manifest()
    for observed in (expected, *expected["conditions"]):
        observed["observedGeneration"] = 7
    assert with_observed_generation(status, 7).manifest() == expected


def test_status_fields_adds_percentage_and_summary_to_progress_without_a_summary() -> None:
    reported = Progress(step=5, planned_steps=20, epoch=0.5, samples_per_second=3.0, observed_time=START)
    fields = status_fields(Report(reason="Interrupted", message="", progress=reported))
    expected = reported.manifest() | {"percentage": 25.0, "summary": "5/20 (25%)"}
    assert fields["progress"].manifest() == expected


def test_only_the_last_ten_attempts_are_kept() -> None:
    status = JobStatus()
    for number in range(1, 14):
        attempts = with_attempt(status, AttemptStatus(number=number, job=f"job-a{number}"))
        status = update_status(status, attempts=attempts)
    assert [it.number for it in status.attempts or []] == list(range(4, 14))


def test_typed_changes_have_the_fields_of_the_models() -> None:
    assert StatusChanges.__annotations__.keys() == JobStatus.model_fields.keys()
    assert AttemptChanges.__annotations__.keys() == AttemptStatus.model_fields.keys() - {"number", "job"}
    assert ConditionChanges.__annotations__.keys() <= Condition.model_fields.keys()
    assert ProgressChanges.__annotations__.keys() <= Progress.model_fields.keys()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"completion_tme": START}, TypeError, id="misspelled field"),
        pytest.param({"completionTime": START}, TypeError, id="alias"),
        pytest.param({"restarts": "three"}, ValidationError, id="wrong type"),
        pytest.param({"attempt": -1}, ValidationError, id="out of bounds"),
    ],
)
def test_invalid_status_change_is_an_error(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        update_status(JobStatus(), **changes)


def test_none_clears_a_field_and_other_fields_stay() -> None:
    attempt = AttemptStatus(number=1, job="job-a1", reason="Crashed", exit_code=1)
    assert update_attempt(attempt, reason=None) == AttemptStatus(number=1, job="job-a1", exit_code=1)


def test_description_of_the_attempt_reason_lists_every_outcome() -> None:
    description = AttemptStatus.model_fields["reason"].description or ""
    listed = set(re.findall(r"[A-Z]\w+", description.partition(":")[2]))
    assert listed == set(termination._OUTCOMES)
