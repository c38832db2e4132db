"""The chart against a real API server: what it installs is admitted, upgraded, and leaves every job where it is.

No pod runs here; that the operator works once it does is for the tests on a node.
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
    """One release of the chart."""

    cluster: Cluster
    program: Path
    name: str = "finetune"
    namespace: str = NAMESPACE

    def helm(self, *argv: str) -> str:
        """Run helm in this release's namespace; its own words are in the failure."""
        homes = {f"HELM_{kind}_HOME": str(self.cluster.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        where = (f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}")
        done = subprocess.run(
            [self.program, *argv, *where],
            env={**os.environ, **homes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *settings: str) -> str:
        """Install the chart of this checkout."""
        return self.helm("install", self.name, str(CHART), *(f"--set={each}" for each in settings))

    def upgrade(self, *settings: str) -> str:
        """Install it again, with other settings."""
        return self.helm("upgrade", self.name, str(CHART), *(f"--set={each}" for each in settings))

    def uninstall(self) -> str:
        """Remove it."""
        return self.helm("uninstall", self.name, "--ignore-not-found", "--wait")


@pytest.fixture(scope="module")
def cluster(require_tier: Callable[[Tier], None], cluster_binaries: None) -> Iterator[Cluster]:
    """A control plane of its own: the chart owns the definitions, which other tests bring without it."""
    require_tier(preflight.CONTROL_PLANE)
    with ControlPlane() as started:
        yield started


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> None:
    """The namespace of the operator, which refuses every pod that is not restricted."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")


@pytest.fixture
def release(cluster: Cluster, namespace: None, helm: Path) -> Iterator[Release]:
    """The chart, installed with its defaults; whatever a test leaves is removed."""
    made = Release(cluster, helm)
    made.install()
    yield made
    made.uninstall()
    cluster.kubectl("delete", CRD, "--ignore-not-found")


def can(cluster: Cluster, verb: str, resource: str, namespace: str, *more: str) -> bool:
    """Whether the operator's account may do this, in the words of the API server."""
    account = f"system:serviceaccount:{NAMESPACE}:{OPERATOR}"
    asked = cluster.try_kubectl("auth", "can-i", verb, resource, f"--as={account}", f"--namespace={namespace}", *more)
    return asked.stdout.strip() == "yes"


def template_annotations(cluster: Cluster) -> dict[str, Any]:
    """The annotations of the operator's pod template, which make new pods when they change."""
    deployment = cluster.get("deployment", OPERATOR, f"--namespace={NAMESPACE}")
    annotations: dict[str, Any] = deployment["spec"]["template"]["metadata"]["annotations"]
    return annotations


def test_the_definition_is_served_and_takes_the_example(release: Release) -> None:
    release.cluster.kubectl("wait", "--for=condition=Established", CRD, "--timeout=30s")
    applied = release.cluster.kubectl("apply", f"--filename={EXAMPLE}", "--dry-run=server")
    assert "finetunejob.finetune.dev/two-optimizers" in applied


def test_pod_security_admits_the_operator(release: Release) -> None:
    def pods() -> list[dict[str, Any]]:
        selector = "--selector=app.kubernetes.io/name=finetune-operator"
        items: list[dict[str, Any]] = release.cluster.get("pods", f"--namespace={NAMESPACE}", selector)["items"]
        return items

    wait_until("the operator's pod", lambda: len(pods()) == 1, 30)
    assert pods()[0]["spec"]["serviceAccountName"] == OPERATOR


def test_pod_security_admits_the_pod_of_helm_test(release: Release) -> None:
    hooks = release.helm("get", "hooks", release.name)
    created = release.cluster.kubectl("create", "--dry-run=server", "--filename=-", input=hooks)
    assert "finetune-finetune-operator-test created" in created


def test_the_operator_may_work_everywhere_and_read_no_secret(release: Release) -> None:
    assert can(release.cluster, "watch", "finetunejobs.finetune.dev", "default")
    assert can(release.cluster, "patch", "finetunejobs.finetune.dev", "default", "--subresource=status")
    assert can(release.cluster, "create", "leases.coordination.k8s.io", NAMESPACE)
    assert not can(release.cluster, "create", "leases.coordination.k8s.io", "default")
    assert not can(release.cluster, "patch", "finetunejobs.finetune.dev", "default")
    assert not can(release.cluster, "get", "secrets", NAMESPACE)


def test_with_namespaces_named_it_may_work_nowhere_else(cluster: Cluster, release: Release) -> None:
    cluster.kubectl("create", "namespace", "team-a")
    release.upgrade("watchNamespaces={team-a}")
    assert can(cluster, "create", "jobs.batch", "team-a")
    assert not can(cluster, "create", "jobs.batch", "default")


def test_an_upgrade_with_other_settings_makes_new_pods(release: Release) -> None:
    before = template_annotations(release.cluster)
    release.upgrade("pollIntervalSeconds=7", "replicas=2")
    assert template_annotations(release.cluster) != before
    budget = release.cluster.get("poddisruptionbudget", OPERATOR, f"--namespace={NAMESPACE}")
    assert budget["spec"]["minAvailable"] == 1


def test_jobs_outlive_the_chart_and_meet_it_again(release: Release) -> None:
    release.cluster.kubectl("wait", "--for=condition=Established", CRD, "--timeout=30s")
    release.cluster.kubectl("apply", f"--filename={EXAMPLE}", "--namespace=default")
    release.uninstall()
    assert release.cluster.try_kubectl("get", "deployment", OPERATOR, f"--namespace={NAMESPACE}").returncode != 0
    assert release.cluster.get("finetunejob", "two-optimizers", "--namespace=default")["spec"]["task"] == "Contrastive"
    release.install()
    assert release.cluster.get("finetunejob", "two-optimizers", "--namespace=default")


def test_people_are_told_what_to_do_next(release: Release) -> None:
    notes = release.helm("get", "notes", release.name)
    assert f"kubectl rollout status deployment/{OPERATOR} --namespace {NAMESPACE}" in notes
    assert "kubectl get finetunejobs --watch" in notes


def test_without_keep_the_definition_goes_with_the_chart(release: Release) -> None:
    release.upgrade("crds.keep=false")
    release.uninstall()
    assert release.cluster.try_kubectl("get", CRD).returncode != 0
