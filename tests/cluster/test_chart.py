"""The chart on a real API server: install, upgrade, uninstall, admission and permissions.

Pods do not run here; the end-to-end tests run the operator.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import Cluster, ControlPlane, preflight
from harness.preflight import Tier
from harness.processes import wait_until

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "finetune-operator"
EXAMPLE = REPOSITORY / "examples" / "two-optimizers" / "job.yaml"
NAMESPACE = "finetune-system"
OPERATOR = "finetune-finetune-operator"
CRD = "customresourcedefinition/finetunejobs.finetune.dev"


@dataclass(frozen=True)
class Release:
    """A Helm release of the chart."""

    cluster: Cluster
    binary: Path
    name: str = "finetune"
    namespace: str = NAMESPACE

    def helm(self, *argv: str) -> str:
        """Run helm in the namespace of the release; a failure shows its standard error."""
        homes = {f"HELM_{kind}_HOME": str(self.cluster.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        flags = (f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        result = subprocess.run(
            [self.binary, *argv, *flags],
            env={**os.environ, **homes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def install(self, *settings: str) -> str:
        """Install the chart."""
        return self.helm("install", self.name, str(CHART), *(f"--set={each}" for each in settings))

    def upgrade(self, *settings: str) -> str:
        """Upgrade the release with other values."""
        return self.helm("upgrade", self.name, str(CHART), *(f"--set={each}" for each in settings))

    def uninstall(self) -> str:
        """Uninstall the release."""
        return self.helm("uninstall", self.name, "--ignore-not-found", "--wait")


@pytest.fixture(scope="module")
def cluster(require_tier: Callable[[Tier], None], cluster_binaries: None) -> Iterator[Cluster]:
    """A separate control plane: the chart owns the CRD, which other tests install without it."""
    require_tier(preflight.CONTROL_PLANE)
    with ControlPlane() as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> None:
    """The namespace of the operator; it enforces the restricted Pod Security Standard."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")


@pytest.fixture
def release(cluster: Cluster, namespace: None, helm: Path) -> Iterator[Release]:
    """The chart, installed with default values; removed after the test."""
    installed = Release(cluster, helm)
    installed.install()
    yield installed
    installed.uninstall()
    cluster.kubectl("delete", CRD, "--ignore-not-found")


def can(cluster: Cluster, verb: str, resource: str, namespace: str, *flags: str) -> bool:
    """Whether `kubectl auth can-i` allows a request of the operator's ServiceAccount."""
    account = f"system:serviceaccount:{NAMESPACE}:{OPERATOR}"
    result = cluster.try_kubectl("auth", "can-i", verb, resource, f"--as={account}", f"--namespace={namespace}", *flags)
    return result.stdout.strip() == "yes"


def template_annotations(cluster: Cluster) -> dict[str, Any]:
    """The annotations of the pod template; a change replaces the pods."""
    deployment = cluster.get("deployment", OPERATOR, f"--namespace={NAMESPACE}")
    annotations: dict[str, Any] = deployment["spec"]["template"]["metadata"]["annotations"]
    return annotations


def test_crd_is_established_and_accepts_the_example(release: Release) -> None:
    release.cluster.kubectl("wait", "--for=condition=Established", CRD, "--timeout=30s")
    applied = release.cluster.kubectl("apply", f"--filename={EXAMPLE}", "--dry-run=server")
    assert "finetunejob.finetune.dev/two-optimizers" in applied


def test_pod_security_admits_the_operator_pod(release: Release) -> None:
    def pods() -> list[dict[str, Any]]:
        selector = "--selector=app.kubernetes.io/name=finetune-operator"
        items: list[dict[str, Any]] = release.cluster.get("pods", f"--namespace={NAMESPACE}", selector)["items"]
        return items

    wait_until("the pod of the operator", lambda: len(pods()) == 1, 30)
    assert pods()[0]["spec"]["serviceAccountName"] == OPERATOR


def test_pod_security_admits_the_helm_test_pod(release: Release) -> None:
    hooks = release.helm("get", "hooks", release.name)
    created = release.cluster.kubectl("create", "--dry-run=server", "--filename=-", input=hooks)
    assert "finetune-finetune-operator-test created" in created


def test_operator_permissions_in_all_namespaces(release: Release) -> None:
    assert can(release.cluster, "watch", "finetunejobs.finetune.dev", "default")
    assert can(release.cluster, "patch", "finetunejobs.finetune.dev", "default", "--subresource=status")
    assert can(release.cluster, "create", "leases.coordination.k8s.io", NAMESPACE)
    assert not can(release.cluster, "create", "leases.coordination.k8s.io", "default")
    assert not can(release.cluster, "patch", "finetunejobs.finetune.dev", "default")
    assert not can(release.cluster, "get", "secrets", NAMESPACE)


def test_watch_namespaces_restricts_permissions(cluster: Cluster, release: Release) -> None:
    cluster.kubectl("create", "namespace", "team-a")
    release.upgrade("watchNamespaces={team-a}")
    assert can(cluster, "create", "jobs.batch", "team-a")
    assert not can(cluster, "create", "jobs.batch", "default")


def test_upgrade_with_other_values_changes_the_pod_template(release: Release) -> None:
    before = template_annotations(release.cluster)
    release.upgrade("scrapeIntervalSeconds=7", "replicas=2")
    assert template_annotations(release.cluster) != before
    budget = release.cluster.get("poddisruptionbudget", OPERATOR, f"--namespace={NAMESPACE}")
    assert budget["spec"]["minAvailable"] == 1


def test_jobs_survive_uninstall_and_reinstall(release: Release) -> None:
    release.cluster.kubectl("wait", "--for=condition=Established", CRD, "--timeout=30s")
    release.cluster.kubectl("apply", f"--filename={EXAMPLE}", "--namespace=default")
    release.uninstall()
    assert release.cluster.try_kubectl("get", "deployment", OPERATOR, f"--namespace={NAMESPACE}").returncode != 0
    assert release.cluster.get("finetunejob", "two-optimizers", "--namespace=default")["spec"]["task"] == "Contrastive"
    release.install()
    assert release.cluster.get("finetunejob", "two-optimizers", "--namespace=default")


def test_notes_show_next_commands(release: Release) -> None:
    notes = release.helm("get", "notes", release.name)
    assert f"kubectl rollout status deployment/{OPERATOR} --namespace {NAMESPACE}" in notes
    assert "kubectl get finetunejobs --watch" in notes


def test_crds_keep_false_deletes_the_crd_on_uninstall(release: Release) -> None:
    release.upgrade("crds.keep=false")
    release.uninstall()
    assert release.cluster.try_kubectl("get", CRD).returncode != 0
