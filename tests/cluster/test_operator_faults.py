"""No write is lost or repeated if the operator is killed at any write, or if a response of the API server is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.framework import Api, Namespace, Operator, documented_permissions, free_port, wait_for
from cluster.proxy import Moment, Proxy
from harness.cluster import Cluster

pytestmark = pytest.mark.cluster


class OncePerWrite:
    """Injects a fault once per write of the operator: before it, after it, or both.

    Status updates count as the same write if attempt and condition reasons are the same.
    """

    def __init__(self, inject: Callable[[], None], moments: Sequence[Moment]) -> None:
        self._inject = inject
        self._moments = moments
        self.armed = True
        self.seen: set[str] = set()

    def __call__(self, method: str, path: str, body: bytes, moment: Moment) -> bool:
        obj = json.loads(body or b"{}")
        status = obj.get("status", {})
        reasons = [it["reason"] for it in status.get("conditions", [])]
        write = str((method, path, obj.get("metadata", {}).get("name"), status.get("attempt"), reasons, moment))
        if not self.armed or moment not in self._moments or write in self.seen:
            return False
        self.seen.add(write)
        self._inject()
        return True


@pytest.mark.parametrize(
    ("killed", "moments"),
    [pytest.param(True, ("before", "after"), id="killed"), pytest.param(False, ("after",), id="response-dropped")],
)
def test_converges_with_one_job_per_attempt_after_a_fault_at_every_write(
    namespace: Namespace, kubeconfig: Path, config: Path, tmp_path: Path, killed: bool, moments: tuple[Moment, ...]
) -> None:
    """The operator is killed before and after every write, or keeps running while every response is dropped once."""

    def restart_if_killed() -> None:
        if killed:
            operator.kill()
            operator.start()

    fault = OncePerWrite(restart_if_killed, moments)
    with Proxy(kubeconfig, fault) as proxy:
        options = ("--no-leader-elect", f"--namespace={namespace.name}")
        operator = Operator(proxy.kubeconfig(), config, tmp_path / "operator.log", *options).start()
        try:
            created = _run_through_all_states(namespace)
        finally:
            # The lock prevents the proxy from restarting it.
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
    assert sorted(created) == ["job-a1", "job-a2", "job-a3"] and all(len(uids) == 1 for uids in created.values())
    configmaps = [it["metadata"]["name"] for it in namespace.api.get(namespace.path("configmaps"))["items"]]
    assert not namespace.attempts() and not [name for name in configmaps if name.startswith("job-a")]


def _run_through_all_states(namespace: Namespace) -> dict[str, set[str]]:
    """Crash, suspend, finish and clean up a job; return the UIDs of its Jobs by name."""
    created: dict[str, set[str]] = {}

    def pod(number: int) -> dict[str, Any]:
        found: dict[str, Any] = wait_for(lambda: namespace.pods(number), 60)[0]
        for job in namespace.attempts():
            created.setdefault(job["metadata"]["name"], set()).add(job["metadata"]["uid"])
        return found

    namespace.create_job()
    namespace.terminate(pod(1), 1, "boom")
    pod(2)
    namespace.set_suspend(True)
    namespace.wait_for_state("Suspended", seconds=60)
    namespace.set_suspend(False)
    namespace.terminate(pod(3), 0)
    namespace.wait_for_state("Succeeded", seconds=60)
    namespace.api.patch(namespace.path("finetunejobs", "job"), {"spec": {"ttlSecondsAfterFinished": 0}})
    wait_for(lambda: namespace.status().get("cleanupTime"), 60)
    return created


def test_standby_takes_over_after_a_crash_and_after_a_shutdown(
    namespace: Namespace, kubeconfig: Path, config: Path, tmp_path: Path
) -> None:
    options = (f"--namespace={namespace.name}", "--lease-namespace=default")
    first = Operator(kubeconfig, config, tmp_path / "first.log", *options).start().wait_until_ready()
    wait_for(lambda: "acquired Lease" in (tmp_path / "first.log").read_text())
    second = Operator(kubeconfig, config, tmp_path / "second.log", *options).start().wait_until_ready()
    wait_for(lambda: "waiting for leader election" in (tmp_path / "second.log").read_text())
    third = Operator(kubeconfig, config, tmp_path / "third.log", *options)
    try:
        first.kill()
        killed = time.monotonic()
        namespace.create_job()
        wait_for(namespace.attempts, 20)
        print(f"takeover after a crash: {time.monotonic() - killed:.1f} s")
        third.start().wait_until_ready()
        assert second.stop() == 0
        stopped = time.monotonic()
        namespace.run(namespace.pod())
        namespace.wait_for_state("Running", seconds=8)
        print(f"takeover after a shutdown: {time.monotonic() - stopped:.1f} s")
    finally:
        second.kill()
        third.kill()


def test_forbidden_namespace_is_skipped(
    api: Api, namespace: Namespace, control_plane: Cluster, config: Path, tmp_path: Path
) -> None:
    """An operator with Roles loses its permissions in a namespace when that namespace is deleted."""
    kind, account = "rbac.authorization.k8s.io", {"name": "operator-with-roles", "namespace": namespace.name}
    watched = [row for row in documented_permissions() if row[3] == "watched namespaces"]
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
    operator = Operator(credentials, config, tmp_path / "operator.log", *options).start().wait_until_ready()
    try:
        namespace.create_job()
        namespace.terminate(namespace.pod(), 0)
        namespace.wait_for_state("Succeeded")
        assert operator.process.is_alive() and "in namespace gone: " in operator.log.read_text()
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
    result = subprocess.run([*command, f"--config={config}"], capture_output=True, text=True, check=False, env={})
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "trainer.imagePullPolicy" in result.stderr
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert result.returncode == 1 and "Traceback" not in result.stderr and "KUBECONFIG" in result.stderr
