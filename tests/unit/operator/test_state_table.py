"""The state table in the docstring of `core.reconcile`, case by case."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.core import reconcile as module
from finetune_operator.core.actions import Actions
from finetune_operator.core.objects import ReasonMessage
from finetune_operator.core.status import merge_patch
from unit.operator.simulation import Simulation, make_pod, running

Arrange = Callable[[Simulation], None]
CASES: list[Any] = []


def case(
    label: str, actions: str, message: str | None = None, *, lookup: bool = True, **spec: Any
) -> Callable[[Arrange], Arrange]:
    """Register a case; the decorated function brings the simulation into the situation that is reconciled.

    Args:
        label: number in the state table, and the situation.
        actions: expected actions, in the format of `summarize`.
        message: expected message of the condition Succeeded.
        lookup: whether lookups are answered.
        spec: fields of the spec.
    """

    def register(arrange: Arrange) -> Arrange:
        CASES.append(pytest.param(arrange, actions, message, lookup, spec, id=f"case {label}"))
        return arrange

    return register


def summarize(sim: Simulation, actions: Actions) -> str:
    """For example `Failed (Crashed), set completionTime; delete jobs job-a1; requeue 10`."""
    parts = []
    if actions.lookup:
        parts.append("look up")
    if actions.creates:
        parts.append("create " + ", ".join(it.resource for it in actions.creates))
    if actions.status:
        conditions = {it.type: it for it in actions.status.conditions}
        state = conditions["Succeeded"].reason
        details = {it.reason for it in conditions.values() if it.status == "True"} - {state}
        changed = merge_patch(sim.job.status, actions.status).keys() & {
            "attempt", "restarts", "completionTime", "cleanupTime",
        }  # fmt: skip
        parts.append(
            state
            + "".join(f" ({reason})" for reason in details)
            + (f", set {', '.join(sorted(changed))}" if changed else "")
        )
    if actions.deletes:
        parts.append("delete " + ", ".join(f"{it.resource} {it.name}" for it in actions.deletes))
    if actions.requeue_after is not None:
        parts.append(f"requeue {actions.requeue_after:g}")
    return "; ".join(parts) or "nothing"


def create(sim: Simulation) -> None:
    """Announce and create the first attempt."""
    sim.step()
    sim.step()


def run(sim: Simulation) -> None:
    sim.settle()
    sim.run()
    sim.settle()


def finish(sim: Simulation, code: int = 0) -> None:
    run(sim)
    sim.exit(code)
    sim.run_job_controller()


@case("1: being deleted", "nothing")
def _(sim: Simulation) -> None:
    run(sim)
    sim.job = replace(sim.job, deleting=True)


@case("2.1: finished, generation not observed", "Succeeded")
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()
    sim.set_spec(activeDeadlineSeconds=5)


@case("2.2: finished, no TTL", "nothing")
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()


@case("2.2: finished, a Job is still active", "delete jobs job-a2")
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()
    sim.attempt_jobs[2] = replace(sim.attempt_jobs[1], name="job-a2", attempt_number=2, complete=False)


@case("2.3: finished, TTL has not passed", "requeue 60", ttlSecondsAfterFinished=60)
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()


@case("2.4: TTL has passed, leftovers unknown", "look up", lookup=False, ttlSecondsAfterFinished=60)
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()
    sim.wait(60)


@case("2.5: leftovers exist", "delete jobs job-a1, configmaps job-a1; requeue 1", ttlSecondsAfterFinished=60)
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()
    sim.wait(60)


@case("2.6: leftovers are deleted", "Succeeded, set cleanupTime", ttlSecondsAfterFinished=60)
def _(sim: Simulation) -> None:
    finish(sim)
    sim.settle()
    sim.wait(60)
    sim.step()


@case("3: invalid spec", "Stalled (InvalidJob)", training={"batchSize": "many"})
def _(sim: Simulation) -> None:
    pass


@case("3: invalid spec, suspended while running", "Stalled (InvalidJob); delete jobs job-a1")
def _(sim: Simulation) -> None:
    run(sim)
    sim.set_spec(training={"batchSize": "many"}, suspend=True)


@case("4.1: suspended", "Suspended", "suspended; set spec.suspend to false to resume", suspend=True)
def _(sim: Simulation) -> None:
    pass


@case("4.2: references unknown", "look up", lookup=False)
def _(sim: Simulation) -> None:
    pass


@case(
    "4.3: pod of an earlier run is active",
    "Pending; requeue 10",
    "waiting for pods of an earlier run to terminate",
)
def _(sim: Simulation) -> None:
    sim.pods[7] = running(make_pod(7, owner_uid="another"))


@case(
    "4.4: references missing",
    "Stalled (MissingReference); requeue 10",
    "PersistentVolumeClaim a not found; ConfigMap b has no key c; "
    "the attempt starts once all references exist in namespace default",
)
def _(sim: Simulation) -> None:
    sim.missing = ("PersistentVolumeClaim a not found", "ConfigMap b has no key c")


@case("4.5: attempt not announced", "Pending, set attempt", "creating attempt 1")
def _(sim: Simulation) -> None:
    pass


@case("4.6: attempt announced", "create persistentvolumeclaims, configmaps, jobs")
def _(sim: Simulation) -> None:
    sim.step()


@case(
    "5.1: suspended while running",
    "Suspending; delete jobs job-a1",
    "stopping: the trainer is writing a checkpoint",
)
def _(sim: Simulation) -> None:
    run(sim)
    sim.set_suspend(True)


@case(
    "5.2: active deadline exceeded",
    "Failed (DeadlineExceeded), set completionTime; delete jobs job-a1",
    "spec.activeDeadlineSeconds (300) exceeded by the total time of all attempts; "
    "recreate the job with a higher value, or without it",
    activeDeadlineSeconds=300,
)
def _(sim: Simulation) -> None:
    run(sim)
    sim.wait(300)


@case(
    "5.3: suspended by Kueue",
    "Queued",
    "waiting for admission by Kueue LocalQueue team; see `kubectl describe workloads`",
    queueName="team",
)
def _(sim: Simulation) -> None:
    create(sim)
    sim.set_admitted(False)


@case(
    "5.4: no pod",
    "Pending",
    "waiting for the pod; if none is created, see `kubectl describe job job-a1`",
)
def _(sim: Simulation) -> None:
    create(sim)
    sim.pods.clear()


@case(
    "5.5: image pull error",
    "Pending (ImagePullFailing); requeue 600",
    "cannot pull image trainer:1: not found",
)
def _(sim: Simulation) -> None:
    create(sim)
    sim.pods[1] = replace(sim.pods[1], waiting=ReasonMessage("ErrImagePull", "not found"))


@case(
    "5.6: image pull deadline",
    "Failed (ImagePullFailed), set completionTime; delete jobs job-a1",
    "cannot pull image trainer:1: not found; check spec.runtime.image, and that the cluster can reach its registry",
)
def _(sim: Simulation) -> None:
    create(sim)
    sim.pods[1] = replace(sim.pods[1], waiting=ReasonMessage("ErrImagePull", "not found"))
    sim.wait(600)


@case(
    "5.7: Secret of an environment variable missing",
    "Stalled (CreateContainerConfigError)",
    'container cannot be created: secret "token" not found; create the missing object; the kubelet retries',
)
def _(sim: Simulation) -> None:
    create(sim)
    waiting = ReasonMessage("CreateContainerConfigError", 'secret "token" not found')
    sim.pods[1] = replace(sim.pods[1], waiting=waiting)


@case("5.8: running", "Running", "attempt 1 is running")
def _(sim: Simulation) -> None:
    create(sim)
    sim.run()


@case("5.8: trainer has exited, Job not finished", "Running", "trainer has exited; its pods are terminating")
def _(sim: Simulation) -> None:
    create(sim)
    sim.exit(0)


@case(
    "5.9: unschedulable",
    "Pending (Unschedulable)",
    "pod is unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
)
def _(sim: Simulation) -> None:
    create(sim)
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    sim.pods[1] = replace(sim.pods[1], unschedulable=message)


@case("5.10: pod is starting", "Pending", "pod is starting")
def _(sim: Simulation) -> None:
    create(sim)


@case("6: Job complete", "Succeeded, set completionTime", "model written to pvc://job-output")
def _(sim: Simulation) -> None:
    finish(sim)


@case("7.1: Job failed, pod still active", "Restarting", "waiting for pods of attempt 1 to terminate")
def _(sim: Simulation) -> None:
    run(sim)
    sim.attempt_jobs[1] = replace(sim.attempt_jobs[1], failed=ReasonMessage("PodFailurePolicy", ""))


@case("7.1: Job deleted by suspend, pod still active", "Suspending", "waiting for pods of attempt 1 to terminate")
def _(sim: Simulation) -> None:
    run(sim)
    sim.set_suspend(True)
    sim.step()


@case("7.2: Job deleted, trainer had succeeded", "Succeeded, set completionTime", "model written to pvc://job-output")
def _(sim: Simulation) -> None:
    run(sim)
    sim.delete_job()
    sim.exit(0)


@case("7.3: Job not in the cache", "look up", lookup=False)
def _(sim: Simulation) -> None:
    run(sim)
    sim.delete_job()
    sim.pods.clear()


@case("7.4: invalid data", "Failed (InvalidJob), set completionTime", "no column caption")
def _(sim: Simulation) -> None:
    run(sim)
    sim.exit(2, message="Traceback ...\nno column caption")
    sim.run_job_controller()


@case(
    "7.4: out of memory",
    "Failed (OutOfMemory), set completionTime",
    "trainer was OOM-killed: memory limit (2Gi) exceeded; raise spec.resources.memory, or lower "
    "spec.training.microBatchSize or spec.data.workers",
)
def _(sim: Simulation) -> None:
    run(sim)
    sim.exit(137, oom_killed=True)
    sim.run_job_controller()


@case(
    "7.5: retry limit reached",
    "Failed (Crashed), set completionTime",
    "retry limit (0) reached: attempt 1 exited with code 1: ValueError: boom",
    retry={"limit": 0},
)
def _(sim: Simulation) -> None:
    run(sim)
    sim.exit(1, message="Traceback ...\nValueError: boom\n")
    sim.run_job_controller()


@case("7.6: suspended", "Suspended", "suspended; set spec.suspend to false to resume from the last checkpoint")
def _(sim: Simulation) -> None:
    run(sim)
    sim.set_suspend(True)
    sim.settle()
    sim.exit(75)


@case("7.7: active deadline used up", "Failed (DeadlineExceeded), set completionTime", activeDeadlineSeconds=1000)
def _(sim: Simulation) -> None:
    run(sim)
    sim.wait(60)
    sim.exit(1)
    sim.run_job_controller()
    sim.settle()
    sim.set_spec(activeDeadlineSeconds=60)


@case(
    "7.8: crashed",
    "Restarting; requeue 10",
    "attempt 2 will resume from the last checkpoint: attempt 1 exited with code 1",
)
def _(sim: Simulation) -> None:
    finish(sim, code=1)


@case(
    "7.8: disrupted",
    "Restarting; requeue 10",
    "attempt 2 will resume from the last checkpoint: attempt 1 exited with code 143",
)
def _(sim: Simulation) -> None:
    run(sim)
    sim.exit(143, disruption="PreemptionByScheduler")
    sim.run_job_controller()


@case("7.9: backoff has passed", "Pending, set attempt, restarts", "creating attempt 2")
def _(sim: Simulation) -> None:
    finish(sim, code=1)
    sim.settle()
    sim.wait(10)


@pytest.mark.parametrize(("arrange", "actions", "message", "lookup", "spec"), CASES)
def test_state_table(arrange: Arrange, actions: str, message: str | None, lookup: bool, spec: dict[str, Any]) -> None:
    sim = Simulation(**spec)
    arrange(sim)
    result = sim.reconcile() if lookup else sim.reconcile_cached()
    assert summarize(sim, result) == actions
    if message is not None:
        assert result.status and result.status.conditions[0].message == message


def test_state_table_code_and_tests_have_the_same_cases() -> None:
    documented = set(re.findall(r"^ (\d+(?:\.\d+)?) ", module.__doc__ or "", re.MULTILINE))
    headings = {number.partition(".")[0] for number in documented if "." in number}
    in_code = re.findall(r"# case ([\d.]+)$", inspect.getsource(module), re.MULTILINE)
    assert documented - headings == set(in_code) == {re.match(r"case ([\d.]+):", it.id)[1] for it in CASES}  # type: ignore[index]
    assert len(in_code) == len(set(in_code))
