"""Fixtures of the operator's cluster tests: the CRD, a namespace per test, credentials, configuration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.framework import CRD, Api, Namespace, Operator, documented_permissions, wait_for
from harness.cluster import Cluster

CONFIG = """
trainer: {image: trainer:test, imagePullDeadlineSeconds: 3, env: [{name: FROM_ADMIN, value: "yes"}]}
outputClaim: {size: 1Gi}
progressIntervalSeconds: 0.2
scrapeIntervalSeconds: 0.2
recheckIntervalSeconds: 0.5
"""
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def api(control_plane: Cluster) -> Api:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    client = Api(control_plane.kubeconfig)
    # Not `kubectl wait`, which fails if the CRD has no conditions yet.
    wait_for(lambda: client.is_success("/apis/finetune.dev/v1alpha1/finetunejobs"))
    return client


@pytest.fixture
def namespace(api: Api) -> Iterator[Namespace]:
    """A namespace that enforces the restricted Pod Security Standard."""
    name = f"operator-{next(NUMBERS)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    wait_for(lambda: api.find(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
    yield Namespace(api, name)
    for job in api.get(f"/apis/finetune.dev/v1alpha1/namespaces/{name}/finetunejobs")["items"]:
        api.delete(f"/apis/finetune.dev/v1alpha1/namespaces/{name}/finetunejobs/{job['metadata']['name']}")


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operator") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def kubeconfig(control_plane: Cluster, api: Api) -> Path:
    """Credentials with exactly the documented permissions of the operator."""
    watched = [(g, r, v) for g, r, v, where in documented_permissions() if where == "watched namespaces"]
    own = [(g, r, v) for g, r, v, where in documented_permissions() if where == "its own namespace"]
    assert len(watched) == 7 and len(own) == 1
    meta = {"name": "operator-under-test"}
    subject = [{"kind": "ServiceAccount", "name": "operator-under-test", "namespace": "default"}]
    kind = "rbac.authorization.k8s.io"
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta | {"namespace": "default"}},
        {"apiVersion": f"{kind}/v1", "kind": "ClusterRole", "metadata": meta, "rules": _rules(watched)},
        {"apiVersion": f"{kind}/v1", "kind": "ClusterRoleBinding", "metadata": meta, "subjects": subject,
         "roleRef": {"apiGroup": kind, "kind": "ClusterRole", "name": meta["name"]}},
        {"apiVersion": f"{kind}/v1", "kind": "Role", "metadata": meta | {"namespace": "default"}, "rules": _rules(own)},
        {"apiVersion": f"{kind}/v1", "kind": "RoleBinding", "metadata": meta | {"namespace": "default"},
         "subjects": subject, "roleRef": {"apiGroup": kind, "kind": "Role", "name": meta["name"]}},
    )  # fmt: skip
    return control_plane.service_account_kubeconfig("default", "operator-under-test")


@pytest.fixture(scope="module")
def operator(kubeconfig: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One operator for all tests of a module that do not kill it."""
    log = tmp_path_factory.mktemp("log") / "operator.log"
    running = Operator(kubeconfig, config, log, "--no-leader-elect", "--log-format=json").start().wait_until_ready()
    yield running
    code = running.stop()
    print(log.read_text()[-20_000:])
    assert code == 0
    assert '"exception"' not in log.read_text()


def _rules(rows: list[tuple[str, str, list[str]]]) -> list[dict[str, Any]]:
    return [{"apiGroups": [group], "resources": [resource], "verbs": verbs} for group, resource, verbs in rows]
