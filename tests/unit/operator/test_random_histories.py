"""Random histories of one job: what the user, the cluster and crashes of the operator may do, in any order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.core.objects import ReasonMessage
from unit.operator.simulation import Simulation

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("run")),
        st.tuples(st.just("exit"), st.sampled_from([0, 1, 2, 75, 76, 77, 78, 137, 143])),
        st.tuples(st.just("oom")),
        st.tuples(st.just("disrupt")),
        st.tuples(st.just("run_job_controller")),
        st.tuples(st.just("delete_terminal_pods")),
        st.tuples(st.just("delete_job")),
        st.tuples(st.just("set_suspend"), st.booleans()),
        st.tuples(st.just("set_admitted"), st.booleans()),
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


def play(sim: Simulation, what: str, *arguments: Any) -> None:
    if what == "oom":
        sim.exit(137, oom_killed=True)
    elif what == "disrupt":
        sim.exit(143, disruption="EvictionByEvictionAPI")
    elif what == "deadline":
        sim.set_spec(activeDeadlineSeconds=arguments[0])
    elif what == "ttl":
        sim.set_spec(ttlSecondsAfterFinished=arguments[0])
    elif what == "missing":
        sim.missing = ("a claim",) if arguments[0] else ()
    elif what == "cannot_pull":
        if (pod := sim.active_pod()) and not pod.running:
            sim.pods[pod.attempt_number] = replace(pod, waiting=ReasonMessage("ErrImagePull", "not found"))
    elif what == "die":
        sim.step(writes=arguments[0])
    else:
        getattr(sim, what)(*arguments)


def active_seconds(sim: Simulation) -> float:
    status = sim.job.status
    open_interval = (sim.now - status.active_since).total_seconds() if status.active_since else 0
    return (status.active_seconds or 0) + open_interval


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_invariants_hold_for_random_histories(events: list[tuple[Any, ...]]) -> None:
    """One Job per attempt, final states stay, conditions never contradict, no time is counted twice, and it settles."""
    sim = Simulation()
    final = ""
    for event in events:
        play(sim, *event)
        if event[0] not in ("die", "settle"):
            sim.step()
        assert len(sim.created) == len(set(sim.created))
        assert sum(not pod.terminal for pod in sim.pods.values()) <= 1
        statuses = sim.condition_statuses
        assert not (statuses.get("Reconciling") == "True" and statuses.get("Stalled") == "True")
        assert final in ("", statuses.get("Succeeded"))
        final = statuses["Succeeded"] if statuses.get("Succeeded") in ("True", "False") else ""
        assert active_seconds(sim) <= sim.pod_seconds
    sim.settle()
    actions = sim.reconcile()
    assert not actions.creates and not actions.status and not actions.deletes and not actions.events
    assert not (sim.job.status.cleanup_time and (sim.attempt_jobs or sim.config_maps))
    assert not (sim.job.finished and sim.job.status.active_since)
    limit = sim.job.spec.get("activeDeadlineSeconds")
    if limit and sim.job.status.active_since:
        assert active_seconds(sim) < limit


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_every_random_history_can_still_finish(events: list[tuple[Any, ...]]) -> None:
    sim = Simulation()
    for event in events:
        play(sim, *event)
        sim.step()
    sim.missing = ()
    sim.set_suspend(False)
    sim.set_admitted(True)
    for _ in range(6):
        sim.wait(601)
        sim.settle()
        sim.run()
        sim.settle()
        sim.exit(0)
        sim.run_job_controller()
    sim.settle()
    assert sim.job.state in ("Succeeded", "Failed")
