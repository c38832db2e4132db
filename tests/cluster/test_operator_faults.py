"""Nothing is lost, doubled or re-run, whenever the operator dies and whatever the API server answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.operated import Api, Namespace, Operator, free_port, rules, wait_for
from cluster.proxy import Moment, Proxy
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster


class OncePerStep:
    """Does its worst before and after each write of the operator's, or at one of these, each time once.

    Writes are the same step when they bring about the same: a status is known by the state and the attempt it tells of.
    """

    def __init__(self, worst: Callable[[], None], moments: Sequence[Moment]) -> None:
        self._worst = worst
        self._moments = moments
        self.armed = True
        self.seen: set[str] = set()

    def __call__(self, method: str, path: str, body: bytes, moment: Moment) -> bool:
        document = json.loads(body or b"{}")
        status = document.get("status", {})
        words = [status.get("attempt"), *(it["reason"] for it in status.get("conditions", []))]
        step = str((method, path, document.get("metadata", {}).get("name"), words, moment))
        if not self.armed or moment not in self._moments or step in self.seen:
            return False
        self.seen.add(step)
        self._worst()
        return True


@pytest.mark.parametrize(
    ("killed", "moments"),
    [pytest.param(True, ("before", "after"), id="killed"), pytest.param(False, ("after",), id="answer-lost")],
)
def test_converges_with_one_job_per_attempt_after_a_fault_at_every_write(
    namespace: Namespace, kubeconfig: Path, config: Path, tmp_path: Path, killed: bool, moments: tuple[Moment, ...]
) -> None:
    """The operator is killed before and after every write; or it lives, but every answer is lost once."""

    def again() -> None:
        if killed:
            operator.kill()
            operator.start()

    fault = OncePerStep(again, moments)
    with Proxy(kubeconfig, fault) as proxy:
        options = ("--no-leader-elect", f"--namespace={namespace.name}")
        operator = Operator(proxy.kubeconfig(), config, tmp_path / "operator.log", *options).start()
        try:
            made = _live(namespace)
        finally:
            # The proxy may be about to start it once more.
            with proxy.lock:
                fault.armed = False
                operator.kill()
            print((tmp_path / "operator.log").read_text()[-10_000:])
    status = namespace.status()
    assert len(fault.seen) >= 12 * len(moments), fault.seen
    assert status["attempt"] == 3 and status["restarts"] == 1
    assert [(it["number"], it["reason"]) for it in status["attempts"]] == [
        (1, "Crashed"), (2, "Suspended"), (3, "Succeeded"),
    ]  # fmt: skip
    assert sorted(made) == ["job-a1", "job-a2", "job-a3"] and all(len(uids) == 1 for uids in made.values())
    left = [it["metadata"]["name"] for it in namespace.api.get(namespace.path("configmaps"))["items"]]
    assert not namespace.attempts() and not [name for name in left if name.startswith("job-a")]


def _live(namespace: Namespace) -> dict[str, set[str]]:
    """A job that crashes, is suspended, succeeds, and is cleaned up; the UIDs of the Jobs seen, by name."""
    made: dict[str, set[str]] = {}

    def pod(number: int) -> dict[str, Any]:
        found: dict[str, Any] = wait_for(lambda: namespace.pods(number), 60)[0]
        for job in namespace.attempts():
            made.setdefault(job["metadata"]["name"], set()).add(job["metadata"]["uid"])
        return found

    namespace.create_job()
    namespace.end(pod(1), 1, "boom")
    pod(2)
    namespace.set_suspend(True)
    namespace.reaches("Suspended", seconds=60)
    namespace.set_suspend(False)
    namespace.end(pod(3), 0)
    namespace.reaches("Succeeded", seconds=60)
    namespace.api.patch(namespace.path("finetunejobs", "job"), {"spec": {"ttlSecondsAfterFinished": 0}})
    wait_for(lambda: namespace.status().get("cleanupTime"), 60)
    return made


def test_standby_takes_over_after_a_crash_and_after_a_shutdown(
    namespace: Namespace, kubeconfig: Path, config: Path, tmp_path: Path
) -> None:
    options = (f"--namespace={namespace.name}", "--lease-namespace=default")
    first = Operator(kubeconfig, config, tmp_path / "first.log", *options).start().ready()
    wait_for(lambda: "acquired Lease" in (tmp_path / "first.log").read_text())
    second = Operator(kubeconfig, config, tmp_path / "second.log", *options).start().ready()
    wait_for(lambda: "waiting for leader election" in (tmp_path / "second.log").read_text())
    third = Operator(kubeconfig, config, tmp_path / "third.log", *options)
    try:
        first.kill()
        killed = time.monotonic()
        namespace.create_job()
        wait_for(namespace.attempts, 20)
        print(f"took over after {time.monotonic() - killed:.1f} s")
        third.start().ready()
        assert second.stop() == 0
        stopped = time.monotonic()
        namespace.run(namespace.pod())
        namespace.reaches("Running", seconds=8)
        print(f"handed over after {time.monotonic() - stopped:.1f} s")
    finally:
        second.kill()
        third.kill()


def test_forbidden_namespace_is_skipped(
    api: Api, namespace: Namespace, control_plane: Cluster, config: Path, tmp_path: Path
) -> None:
    """As it is for an operator with Roles, once somebody has deleted one of its namespaces."""
    kind, account = "rbac.authorization.k8s.io", {"name": "operator-with-roles", "namespace": namespace.name}
    watched = [row for row in rules() if row[3] == "watched namespaces"]
    role = [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs, _ in watched]
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {"apiVersion": f"{kind}/v1", "kind": "Role", "metadata": account, "rules": role},
        {"apiVersion": f"{kind}/v1", "kind": "RoleBinding", "metadata": account,
         "subjects": [{"kind": "ServiceAccount"} | account],
         "roleRef": {"apiGroup": kind, "kind": "Role", "name": account["name"]}},
    )  # fmt: skip
    credentials = control_plane.service_account_kubeconfig(namespace.name, account["name"])
    options = ("--no-leader-elect", "--namespace=gone", f"--namespace={namespace.name}")
    operator = Operator(credentials, config, tmp_path / "operator.log", *options).start().ready()
    try:
        namespace.create_job()
        namespace.end(namespace.pod(), 0)
        namespace.reaches("Succeeded")
        assert operator.process.is_alive() and "skipping namespace gone" in operator.log.read_text()
    finally:
        operator.kill()
        print(operator.log.read_text()[-10_000:])


def test_command_reports_errors_without_a_traceback(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer: {imagePullPolicy: Sometimes}\n")
    command = [
        sys.executable,
        "-m",
        "finetune_operator",
        f"--health-port={free_port()}",
        f"--metrics-port={free_port()}",
    ]
    done = subprocess.run([*command, f"--config={config}"], capture_output=True, text=True, check=False, env={})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "trainer.imagePullPolicy" in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert done.returncode == 1 and "Traceback" not in done.stderr and "KUBECONFIG" in done.stderr
