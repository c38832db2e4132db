"""The heart of the operator: every step of a job's life, then random lives."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.status import CheckpointStatus, Metric, Progress
from finetune_operator.config import Config
from finetune_operator.core.actions import Lookup
from finetune_operator.core.children import Children, LeftoverConfigMap
from finetune_operator.core.objects import ReasonMessage
from finetune_operator.core.progress import ProgressSnapshot
from finetune_operator.core.reconcile import reconcile
from unit.operator.model import START, Model, ended, make_attempt, make_job, make_pod, running


def truths(model: Model) -> dict[str, str]:
    return {it.type: it.status for it in model.job.status.conditions}


def message(model: Model) -> str:
    return next(it.message for it in model.job.status.conditions if it.type == "Succeeded")


def stalled_reason(model: Model) -> str:
    return next(it.reason for it in model.job.status.conditions if it.type == "Stalled")


def started() -> Model:
    model = Model()
    model.settle()
    model.run()
    model.settle()
    return model


def test_an_attempt_is_announced_before_it_is_created() -> None:
    model = Model()
    actions = model.step()
    assert actions.status and actions.status.attempt == 1 and not actions.creates
    actions = model.step()
    assert [it.resource for it in actions.creates] == [
        "persistentvolumeclaims",
        "configmaps",
        "jobs",
    ] and not actions.status


def test_nothing_is_created_before_somebody_has_looked() -> None:
    job = make_job(data={"train": {"source": "pvc://captions"}})
    actions = reconcile(job, Children(), START, Config())
    assert actions.lookup == Lookup(claims=("captions",)) and not actions.creates and not actions.status


def test_optional_and_secret_references_are_not_looked_for() -> None:
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "k", "optional": True}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}},
        {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    actions = reconcile(make_job(runtime={"env": env}), Children(), START, Config())
    assert actions.lookup == Lookup(config_map_keys=(("c", "k"),))


def test_everything_that_a_pod_mounts_or_reads_is_looked_for() -> None:
    runtime = {
        "cacheClaim": "downloads",
        "volumes": [{"claim": "more", "mountPath": "/more"}, {"claim": "downloads", "mountPath": "/again"}],
        "envFrom": [
            {"configMapRef": {"name": "settings"}},
            {"configMapRef": {"name": "perhaps", "optional": True}},
            {"secretRef": {"name": "token"}},
        ],
    }
    data = {"train": {"source": "hf://org/data"}, "test": {"source": "pvc://held-out/test"}}
    actions = reconcile(make_job(runtime=runtime, data=data), Children(), START, Config())
    assert actions.lookup == Lookup(claims=("held-out", "more", "downloads"), config_maps=("settings",))


def test_a_job_that_runs_is_in_progress_for_everyone() -> None:
    model = started()
    assert model.job.state == "Running"
    assert truths(model) == {
        "Succeeded": "Unknown", "Reconciling": "True", "Stalled": "False", "Suspended": "False",
    }  # fmt: skip
    assert model.job.status.start_time == START


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [(2, False, "InvalidJob"), (77, False, "OutOfGPUMemory"), (137, True, "OutOfMemory")],
)
def test_what_would_only_fail_again_fails_at_once(code: int, oom: bool, reason: str) -> None:
    model = started()
    model.end(code, oom_killed=oom)
    model.judge()
    model.settle()
    assert model.job.state == "Failed" and stalled_reason(model) == reason
    assert truths(model)["Reconciling"] == "False"
    assert model.created == ["job-a1"]


def test_a_crash_waits_and_resumes_as_a_new_attempt() -> None:
    model = started()
    model.end(1, message="ValueError: boom")
    model.judge()
    actions = model.settle()
    assert model.job.state == "Restarting" and actions.requeue_after == 10
    assert "boom" in message(model)
    model.wait(10)
    model.settle()
    assert model.created == ["job-a1", "job-a2"] and model.job.status.restarts == 1


def test_the_waiting_doubles_and_a_long_attempt_resets_it() -> None:
    model = Model(retry={"limit": 10, "backoffSeconds": 10})
    waits = []
    for lasted in (1, 1, 1, 700, 1):
        model.settle()
        model.run()
        model.wait(lasted)
        model.end(1)
        model.judge()
        wait = model.settle().requeue_after or 0
        waits.append(wait)
        model.wait(wait)
    assert waits == [10, 20, 40, 10, 10]


def test_no_attempt_follows_while_a_pod_of_the_last_still_runs() -> None:
    model = started()
    model.attempts[1] = replace(model.attempts[1], failed=ReasonMessage("PodFailurePolicy", "x"))
    model.wait(1000)
    model.settle()
    assert model.job.state == "Restarting" and model.created == ["job-a1"]


def test_a_disruption_uses_up_no_retry_even_if_only_the_job_tells_of_it() -> None:
    model = started()
    model.pods.clear()
    text = "Pod default/job-a1-0 has condition DisruptionTarget matching FailJob rule at index 0"
    model.attempts[1] = replace(model.attempts[1], failed=ReasonMessage("PodFailurePolicy", text))
    model.settle()
    model.wait(10)
    model.settle()
    assert model.created == ["job-a1", "job-a2"] and model.job.status.restarts is None
    assert (model.job.status.attempts or [])[0].disruption == "DisruptionTarget"


def test_the_exit_code_is_read_from_the_job_when_the_pod_has_vanished() -> None:
    model = started()
    model.pods.clear()
    text = "Container trainer for pod default/job-a1-0 failed with exit code 2 matching FailJob rule at index 1"
    model.attempts[1] = replace(model.attempts[1], failed=ReasonMessage("PodFailurePolicy", text))
    model.settle()
    assert model.job.state == "Failed" and stalled_reason(model) == "InvalidJob"


def test_an_eviction_for_a_full_disk_counts_although_the_trainer_left_in_order() -> None:
    model = started()
    evicted = ReasonMessage("Evicted", "Usage of EmptyDir volume exceeds the limit")
    model.end(75, status_reason=evicted)
    model.judge()
    model.settle()
    assert (model.job.status.attempts or [])[0].reason == "Evicted"
    model.wait(10)
    model.settle()
    assert model.job.status.restarts == 1


def test_suspension_deletes_the_attempt_and_resuming_makes_the_next() -> None:
    model = started()
    model.suspend(True)
    model.settle()
    assert model.job.state == "Suspending" and not model.attempts
    model.end(75)
    model.settle()
    assert model.job.state == "Suspended" and truths(model)["Suspended"] == "True"
    model.suspend(False)
    model.settle()
    assert model.created == ["job-a1", "job-a2"] and model.job.status.restarts is None


def test_a_trainer_killed_by_our_suspension_did_not_crash() -> None:
    model = started()
    model.suspend(True)
    model.settle()
    model.end(143)
    model.settle()
    assert (model.job.status.attempts or [])[0].reason == "Suspended"


def test_a_job_that_is_created_suspended_waits() -> None:
    model = Model(suspend=True)
    model.settle()
    assert model.job.state == "Suspended" and not model.created


def test_what_is_missing_is_named_and_looked_for_again() -> None:
    model = Model()
    model.missing = ("PersistentVolumeClaim a not found",)
    actions = model.settle()
    assert model.job.state == "Stalled" and actions.requeue_after == 10
    assert "PersistentVolumeClaim a not found" in message(model)
    model.missing = ()
    model.settle()
    assert model.created == ["job-a1"] and truths(model)["Stalled"] == "False"


def test_a_spec_that_the_language_refuses_stalls_and_says_why() -> None:
    job = make_job(training={"batchSize": "many"})
    actions = reconcile(job, Children(), START, Config())
    assert actions.status and "spec.training.batchSize" in actions.status.conditions[0].message
    assert actions.events[0].reason == "InvalidJob" and actions.events[0].type == "Warning"


def test_an_image_that_cannot_be_pulled_is_told_steadily_then_fails() -> None:
    model = Model()
    model.settle()
    cause = "rpc error: trainer:1 not found"
    said = [
        ReasonMessage("ErrImagePull", cause),
        ReasonMessage("ImagePullBackOff", f'Back-off pulling image "trainer:1": ErrImagePull: {cause}'),
    ]
    for each in said * 2:
        model.pods[1] = replace(model.pods[1], waiting=each)
        model.settle()
        assert model.job.state == "Pending" and message(model) == f"cannot pull image trainer:1: {cause}"
    model.wait(600)
    actions = model.step()
    assert model.job.state == "Failed" and stalled_reason(model) == "ImagePullFailed"
    assert actions.deletes and not model.attempts


def test_a_job_suspended_by_a_queue_is_queued_and_keeps_its_attempt() -> None:
    model = Model()
    model.settle()
    model.attempts[1] = replace(model.attempts[1], suspended=True)
    model.pods.clear()
    actions = model.settle()
    assert model.job.state == "Queued" and not actions.deletes


def test_a_pod_that_its_node_turned_away_is_retried_up_to_the_limit() -> None:
    model = Model(retry={"limit": 1, "backoffSeconds": 10})
    for _ in range(6):
        model.settle()
        if pod := model.live_pod():
            model.pods[pod.attempt_number] = replace(
                pod, phase="Failed", status_reason=ReasonMessage("OutOfcpu", "no CPU left")
            )
        model.judge()
        model.settle()
        model.wait(60)
    assert model.created == ["job-a1", "job-a2"] and model.job.state == "Failed"


def test_a_run_that_succeeds_while_it_is_being_suspended_has_succeeded() -> None:
    model = started()
    model.suspend(True)
    model.settle()
    model.end(0)
    model.settle()
    assert model.job.state == "Succeeded" and truths(model)["Stalled"] == "False"


def test_a_pod_that_a_queue_took_away_is_not_how_its_attempt_ended() -> None:
    model = started()
    model.end(75)
    model.attempts[1] = replace(model.attempts[1], suspended=True)
    model.settle()
    assert model.job.state == "Queued" and (model.job.status.attempts or [])[0].reason is None
    model.attempts[1] = replace(model.attempts[1], suspended=False)
    model.pods[1] = running(make_pod())
    model.settle()
    model.end(1)
    model.judge()
    model.settle()
    assert (model.job.status.attempts or [])[0].reason == "Crashed"


def test_waiting_for_a_node_does_not_use_up_the_time_to_pull() -> None:
    model = Model()
    model.settle()
    model.wait(3600)
    refused = ReasonMessage("ErrImagePull", "rpc error: try again")
    model.pods[1] = replace(model.pods[1], waiting=refused, scheduled_at=model.now)
    model.settle()
    assert model.job.state == "Pending"


def test_the_trainers_last_word_becomes_status() -> None:
    model = started()
    report = {
        "reason": "Succeeded", "message": "done in 40 steps", "progress": {"step": 40, "plannedSteps": 40},
        "output": {"destination": "pvc://job-output", "digest": "sha256:1"},
    }  # fmt: skip
    model.end(0, message=json.dumps(report))
    model.judge()
    model.settle()
    assert model.job.state == "Succeeded" and message(model) == "done in 40 steps"
    assert model.job.status.output and model.job.status.output.digest == "sha256:1"
    assert model.job.status.completion_time


def reading(step: int, seconds: float) -> ProgressSnapshot:
    at = START + timedelta(seconds=seconds)
    return ProgressSnapshot(
        1,
        Progress(step=step, planned_steps=100, observed_time=at),
        (Metric(name="train/loss", value=1.0 / step, step=step),),
        checkpoint=CheckpointStatus(step=step, time=START),
    )


def test_progress_alone_is_written_only_now_and_then() -> None:
    model = started()
    children = Children(tuple(model.attempts.values()), tuple(model.pods.values()))

    def at(seconds: float, step: int) -> Any:
        seen = replace(children, snapshot=reading(step, seconds))
        return reconcile(model.job, seen, START + timedelta(seconds=seconds), model.config)

    actions = at(0, 1)
    assert actions.status and actions.status.checkpoint
    assert actions.status.checkpoint.path == "pvc://job-output/.checkpoints/uid-1"
    model.job = replace(model.job, status=actions.status)
    later = at(5, 2)
    assert later.status is None and later.requeue_after == 10 and not later.events
    assert at(15, 3).status


def test_a_reading_of_an_earlier_attempt_is_not_believed() -> None:
    model = started()
    stale = replace(reading(9, 0), attempt_number=7)
    children = Children(tuple(model.attempts.values()), tuple(model.pods.values()), snapshot=stale)
    assert reconcile(model.job, children, START, model.config).status is None


def test_a_new_job_waits_for_what_is_left_of_its_namesake() -> None:
    old = make_attempt(owner_uid="another")
    for left in (
        Children(jobs=(old,), missing_references=()),
        Children(pods=(running(make_pod(3)),), missing_references=()),
    ):
        actions = reconcile(make_job(), left, START, Config())
        assert actions.status and actions.status.attempt is None and actions.requeue_after and not actions.creates


def test_a_dead_pod_of_a_namesake_says_nothing_about_this_job() -> None:
    model = started()
    model.pods[1] = replace(model.pods[1], name="old", owner_uid="another")
    model.pods[1] = ended(model.pods[1], 2)
    assert not model.step().status or model.job.state == "Pending"
    assert (model.job.status.attempts or [])[0].exit_code is None


def test_a_deleted_job_is_left_to_the_garbage_collector() -> None:
    model = started()
    model.job = replace(model.job, deleting=True)
    actions = model.reconcile()
    assert not actions.status and not actions.creates and not actions.deletes


def test_the_first_cause_is_not_forgotten_when_other_pods_die_of_it() -> None:
    model = started()
    model.pods[1] = ended(model.pods[1], 137, oom_killed=True)
    model.settle()
    model.pods[1] = ended(make_pod(), 143)
    model.judge()
    model.settle()
    assert stalled_reason(model) == "OutOfMemory"


def test_a_trainer_that_stalled_is_retried_and_counted() -> None:
    model = started()
    model.end(76)
    model.judge()
    model.settle()
    (record,) = model.job.status.attempts or []
    assert record.reason == "Stalled" and "stallTimeoutSeconds" in message(model)
    model.wait(10)
    model.settle()
    assert model.created == ["job-a1", "job-a2"] and model.job.status.restarts == 1


def test_what_a_container_that_cannot_be_created_says_is_shown() -> None:
    model = Model()
    model.settle()
    model.pods[1] = replace(model.pods[1], waiting=ReasonMessage("CreateContainerError", "no such device"))
    model.settle()
    assert model.job.state == "Stalled" and "no such device" in message(model)


def test_without_a_pod_the_likely_reasons_are_named() -> None:
    model = Model(runtime={"serviceAccountName": "trainer"})
    model.settle()
    model.pods.clear()
    model.settle()
    assert model.job.state == "Pending" and "check that ServiceAccount trainer exists" in message(model)


def test_a_running_job_that_is_not_understood_any_more_can_be_stopped() -> None:
    model = started()
    model.change(training={"batchSize": "many"})
    model.settle()
    assert model.job.state == "Stalled" and model.attempts
    model.suspend(True)
    model.settle()
    assert not model.attempts


# How long it may run, and how long it is kept.


def test_a_job_that_has_run_for_too_long_has_failed_and_is_stopped() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.settle()
    model.run()
    assert model.settle().requeue_after == 100
    model.wait(99)
    model.settle()
    assert model.job.state == "Running"
    model.wait(1)
    actions = model.step()
    assert model.job.state == "Failed" and stalled_reason(model) == "DeadlineExceeded" and actions.deletes
    assert "spec.activeDeadlineSeconds" in message(model) and not model.attempts
    assert (model.job.status.attempts or [])[0].reason == "DeadlineExceeded"
    assert model.job.status.active_seconds == 100 and model.job.status.active_since is None


def test_attempts_count_together_and_the_time_between_them_does_not() -> None:
    model = Model(activeDeadlineSeconds=100, retry={"limit": 9, "backoffSeconds": 300})
    for _ in range(2):
        model.settle()
        model.run()
        model.settle()
        model.wait(40)
        model.end(1)
        model.judge()
        model.settle()
        model.wait(300)
    assert model.job.status.active_seconds == 80
    model.settle()
    model.wait(20)
    model.settle()
    assert model.job.state == "Failed" and stalled_reason(model) == "DeadlineExceeded"


def test_suspended_and_queued_time_does_not_count() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.settle()
    model.wait(30)
    model.queue(takes=True)
    model.settle()
    model.wait(1000)
    model.settle()
    assert model.job.state == "Queued" and model.job.status.active_seconds == 30
    model.queue(takes=False)
    model.settle()
    model.wait(30)
    model.suspend(True)
    model.settle()
    model.end(75)
    model.settle()
    model.wait(1000)
    model.suspend(False)
    model.settle()
    assert model.job.status.active_seconds == 60
    model.wait(39)
    model.settle()
    assert model.job.state == "Pending"
    model.wait(1)
    model.settle()
    assert model.job.state == "Failed"


def test_the_time_of_an_attempt_that_nobody_watched_counts() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.step()
    model.step()
    model.run()
    model.wait(70)
    model.end(75)
    model.judge()
    model.wait(500)
    model.settle()
    assert model.job.status.active_seconds == 70


@pytest.mark.parametrize(("code", "state"), [(0, "Succeeded"), (2, "Failed")])
def test_the_time_an_operator_was_away_is_nobodys(code: int, state: str) -> None:
    model = Model(activeDeadlineSeconds=1000, ttlSecondsAfterFinished=20_000)
    model.settle()
    model.run()
    model.settle()
    model.wait(40)
    end = model.now
    model.end(code)
    model.judge()
    if code:
        said = ReasonMessage(
            "PodFailurePolicy", f"Container trainer for pod default/job-a1-0 failed with exit code {code}"
        )
        model.attempts[1] = replace(model.attempts[1], failed=said)
    model.lose_pods()
    model.wait(10_000)
    model.settle()
    status = model.job.status
    assert model.job.state == state
    assert ((status.attempts or [])[0].end_time, status.completion_time, status.active_seconds) == (end, end, 40)
    assert model.reconcile().requeue_after == 10_000


def test_a_job_deleted_while_the_operator_was_away_ran_until_it_was_last_seen() -> None:
    model = Model(activeDeadlineSeconds=1000)
    model.settle()
    model.run()
    model.settle()
    model.wait(40)
    seen = Progress(step=1, observed_time=model.now)
    model.job = replace(model.job, status=model.job.status.model_copy(update={"progress": seen}))
    end = model.now
    model.delete_attempt()
    model.end(143)
    model.pods.clear()
    model.wait(10_000)
    model.step()
    status = model.job.status
    assert ((status.attempts or [])[0].end_time, status.active_seconds) == (end, 40)


def test_a_stretch_is_counted_once_however_a_queue_takes_its_pods() -> None:
    model = Model(activeDeadlineSeconds=1000)
    model.settle()
    model.run()
    model.settle()
    model.wait(30)
    model.end(143)
    model.settle()
    assert model.job.status.active_seconds == 30
    model.pods.clear()
    model.attempts[1] = replace(model.attempts[1], suspended=True)  # asked for; the Job controller has yet to act
    model.settle()
    model.wait(500)
    model.queue(takes=True)
    model.attempts[1] = replace(model.attempts[1], started_at=None, suspended_at=model.now)
    model.settle()
    assert model.job.status.active_seconds == 30


def test_the_deadline_holds_for_pods_that_a_queue_asks_back_too() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.settle()
    model.run()
    model.settle()
    model.wait(90)
    model.attempts[1] = replace(model.attempts[1], suspended=True)
    model.settle()
    assert model.job.state == "Queued"
    model.wait(10)
    model.settle()
    assert model.job.state == "Failed" and stalled_reason(model) == "DeadlineExceeded"


def test_a_deadline_can_be_raised_while_it_runs() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.settle()
    model.run()
    model.settle()
    model.wait(90)
    model.change(activeDeadlineSeconds=1000)
    assert model.settle().requeue_after == 910
    model.wait(100)
    model.settle()
    assert model.job.state == "Running"


def test_no_attempt_begins_when_no_time_is_left() -> None:
    model = Model(activeDeadlineSeconds=1000)
    model.settle()
    model.wait(60)
    model.end(1)
    model.judge()
    model.settle()
    model.change(activeDeadlineSeconds=50)
    model.settle()
    assert model.job.state == "Failed" and model.created == ["job-a1"]


def test_a_run_that_ends_with_its_time_has_succeeded() -> None:
    model = Model(activeDeadlineSeconds=100)
    model.settle()
    model.run()
    model.settle()
    model.wait(100)
    model.end(0)
    model.settle()
    model.judge()
    model.settle()
    assert model.job.state == "Succeeded"


def finished(**spec: Any) -> Model:
    model = Model(**spec)
    model.settle()
    model.suspend(True)
    model.settle()
    model.end(75)
    model.settle()
    model.suspend(False)
    model.settle()
    model.end(0)
    model.judge()
    model.settle()
    assert model.job.state == "Succeeded"
    return model


def test_what_a_job_leaves_is_deleted_after_its_time_and_the_job_stays() -> None:
    model = finished(ttlSecondsAfterFinished=60)
    assert model.attempts and model.configmaps == {"job-a1", "job-a2"} and model.reconcile().requeue_after == 60
    model.wait(60)
    model.settle()
    assert not model.attempts and not model.configmaps and model.job.status.cleanup_time == model.now
    assert model.job.state == "Succeeded"
    assert not model.reconcile().lookup, "what is gone is not looked for again"


def test_without_a_time_it_stays_until_one_is_given() -> None:
    model = finished()
    model.wait(10_000)
    model.settle()
    assert model.attempts and model.configmaps
    model.change(ttlSecondsAfterFinished=0)
    model.settle()
    assert not model.attempts and not model.configmaps


def test_what_belongs_to_somebody_else_is_not_cleaned_up() -> None:
    model = finished(ttlSecondsAfterFinished=0)
    model.job = replace(model.job, status=model.job.status.model_copy(update={"cleanup_time": None}))
    foreign = Children(
        jobs=(make_attempt(1, owner_uid="another"),),
        leftover_config_maps=(LeftoverConfigMap("job-a1", "uid", "another"),),
    )
    actions = reconcile(model.job, foreign, model.now, model.config)
    assert not actions.deletes and actions.status and actions.status.cleanup_time


def test_cleaning_up_is_done_when_the_pods_of_this_job_are_gone() -> None:
    model = finished(ttlSecondsAfterFinished=0)
    model.job = replace(model.job, status=model.job.status.model_copy(update={"cleanup_time": None}))
    own = Children(pods=(running(make_pod(2, created_at=START)),), leftover_config_maps=())
    assert not reconcile(model.job, own, model.now, model.config).status
    earlier = Children(pods=(running(make_pod(1, created_at=START - timedelta(days=1))),), leftover_config_maps=())
    actions = reconcile(model.job, earlier, model.now, model.config)
    assert actions.status and actions.status.cleanup_time


def test_what_is_looked_for_has_a_bound() -> None:
    model = finished(ttlSecondsAfterFinished=0)
    status = model.job.status.model_copy(update={"cleanup_time": None, "attempt": 100_000})
    actions = reconcile(replace(model.job, status=status), Children(), model.now, model.config)
    assert actions.lookup
    names = actions.lookup.leftover_config_maps
    assert names[-1] == "job-a100000" and len(names) == 500


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("run")),
        st.tuples(st.just("end"), st.sampled_from([0, 1, 2, 75, 76, 77, 137, 143])),
        st.tuples(st.just("oom")),
        st.tuples(st.just("disrupt")),
        st.tuples(st.just("judge")),
        st.tuples(st.just("lose_pods")),
        st.tuples(st.just("delete_attempt")),
        st.tuples(st.just("suspend"), st.booleans()),
        st.tuples(st.just("take_from_queue")),
        st.tuples(st.just("admit")),
        st.tuples(st.just("deadline"), st.sampled_from([None, 5, 300, 1000])),
        st.tuples(st.just("ttl"), st.sampled_from([None, 0, 300])),
        st.tuples(st.just("missing"), st.booleans()),
        st.tuples(st.just("cannot_pull")),
        st.tuples(st.just("wait"), st.sampled_from([1, 11, 301, 601])),
        st.tuples(st.just("die"), st.integers(0, 3)),
        st.tuples(st.just("settle")),
    ),
    max_size=40,
)


def happen(model: Model, what: str, *arguments: Any) -> None:
    if what == "oom":
        model.end(137, oom_killed=True)
    elif what == "disrupt":
        model.end(143, disruption="EvictionByEvictionAPI")
    elif what in ("take_from_queue", "admit"):
        model.queue(takes=what == "take_from_queue")
    elif what == "deadline":
        model.change(activeDeadlineSeconds=arguments[0])
    elif what == "ttl":
        model.change(ttlSecondsAfterFinished=arguments[0])
    elif what == "missing":
        model.missing = ("a claim",) if arguments[0] else ()
    elif what == "cannot_pull":
        if (pod := model.live_pod()) and not pod.running:
            model.pods[pod.attempt_number] = replace(pod, waiting=ReasonMessage("ErrImagePull", "not found"))
    elif what == "die":
        model.step(writes=arguments[0])
    else:
        getattr(model, what)(*arguments)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_whatever_happens(events: list[tuple[Any, ...]]) -> None:
    """One Job per attempt, no way back from an end, never two answers at once, and nothing left to do twice."""
    model = Model()
    verdict = ""
    for event in events:
        happen(model, *event)
        if event[0] not in ("die", "settle"):
            model.step()
        repeated = {name for name, count in Counter(model.created).items() if count > 1}
        assert not repeated
        assert sum(not pod.terminal for pod in model.pods.values()) <= 1
        found = truths(model)
        assert not (found.get("Reconciling") == "True" and found.get("Stalled") == "True")
        assert verdict in ("", found.get("Succeeded"))
        verdict = found["Succeeded"] if found.get("Succeeded") in ("True", "False") else ""
        status = model.job.status
        running = (model.now - status.active_since).total_seconds() if status.active_since else 0
        assert (status.active_seconds or 0) + running <= model.ran
    model.settle()
    actions = model.reconcile()
    assert not actions.creates and not actions.status and not actions.deletes and not actions.events
    assert not (model.job.status.cleanup_time and (model.attempts or model.configmaps))
    status, limit = model.job.status, model.job.spec.get("activeDeadlineSeconds")
    assert not (model.job.finished and status.active_since)
    if limit and status.active_since:
        assert (status.active_seconds or 0) + (model.now - status.active_since).total_seconds() < limit


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_every_job_can_still_come_to_an_end(events: list[tuple[Any, ...]]) -> None:
    model = Model()
    for event in events:
        happen(model, *event)
        model.step()
    model.missing = ()
    model.suspend(False)
    model.queue(takes=False)
    for _ in range(6):
        model.wait(601)
        model.settle()
        model.run()
        model.settle()
        model.end(0)
        model.judge()
    model.settle()
    assert model.job.state in ("Succeeded", "Failed")
