"""Pod security, service account tokens and network policy. The cluster tests check admission by the API server."""

import pytest

from unit.chart.rendering import Chart, Object


def pods(chart: Chart) -> dict[str, Object]:
    rendered = chart.render()
    return {"operator": rendered.pod, "test": rendered.only("Pod")["spec"]}


@pytest.mark.parametrize("name", ["operator", "test"])
def test_pod_security_context_is_restricted(chart: Chart, name: str) -> None:
    pod = pods(chart)[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_only_the_operator_pod_mounts_a_token(chart: Chart) -> None:
    specs = pods(chart)
    assert specs["operator"]["automountServiceAccountToken"] is True
    assert specs["test"]["automountServiceAccountToken"] is False
    assert chart.render().only("ServiceAccount")["automountServiceAccountToken"] is False


def test_network_policy_allows_metrics_probes_and_scraping(chart: Chart) -> None:
    spec = chart.render(networkPolicy={"enabled": True, "apiServerPorts": [6443]}).only("NetworkPolicy")["spec"]
    assert [port["port"] for port in spec["ingress"][0]["ports"]] == ["metrics", "health"]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 6443, 9090]


def test_network_policy_is_disabled_by_default(chart: Chart) -> None:
    assert chart.render().all("NetworkPolicy") == []
