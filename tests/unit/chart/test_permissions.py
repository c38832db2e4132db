"""RBAC of the chart: grants exactly the documented permissions of the operator."""

from collections.abc import Iterator

import pytest

import finetune_operator
from unit.chart.rendering import NAMESPACE, Chart, Object

Permission = tuple[str, str, str]
"""API group, resource and verb."""

OWN_NAMESPACE = "its own namespace"
SENSITIVE = {"secrets", "pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token", "nodes", "roles"}


def documented(*, own_namespace: bool) -> set[Permission]:
    """The permissions in the docstring of `finetune_operator`, for its own namespace or for the watched namespaces."""
    assert finetune_operator.__doc__ is not None
    lines = finetune_operator.__doc__.split("API group", 1)[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {
        (group.replace("(core)", ""), resource, verb)
        for group, resource, verbs, scope in rows
        if (scope == OWN_NAMESPACE) is own_namespace
        for verb in verbs.split(", ")
    }


def granted(*roles: Object) -> set[Permission]:
    return {permission for role in roles for rule in role["rules"] for permission in permissions(rule)}


def permissions(rule: Object) -> Iterator[Permission]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            yield from ((group, resource, verb) for verb in rule["verbs"])


def operator_roles(chart: Chart, *kinds: str, **values: object) -> list[Object]:
    """The roles of the operator, without the roles for users that are aggregated into `view` and `edit`."""
    roles = chart.render(rbac={"aggregate": False}, **values).all(*kinds)
    return sorted(roles, key=lambda role: role["metadata"].get("namespace", ""))


def test_cluster_role_grants_the_documented_permissions(chart: Chart) -> None:
    (role,) = operator_roles(chart, "ClusterRole")
    assert granted(role) == documented(own_namespace=False)


def test_role_grants_leases_in_the_operator_namespace(chart: Chart) -> None:
    (role,) = operator_roles(chart, "Role")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert granted(role) == documented(own_namespace=True)


def test_watch_namespaces_replaces_cluster_role_with_roles(chart: Chart) -> None:
    values = {"watchNamespaces": ["team-a", "team-b"]}
    assert operator_roles(chart, "ClusterRole", "ClusterRoleBinding", **values) == []
    lease, *watched = operator_roles(chart, "Role", **values)
    assert lease["metadata"]["namespace"] == NAMESPACE
    assert [role["metadata"]["namespace"] for role in watched] == ["team-a", "team-b"]
    assert all(granted(role) == documented(own_namespace=False) for role in watched)


@pytest.mark.parametrize("namespaces", [[], ["team-a"]])
def test_every_role_is_bound_only_to_the_operator(chart: Chart, namespaces: list[str]) -> None:
    rendered = chart.render(rbac={"aggregate": False}, watchNamespaces=namespaces)
    operator = {"kind": "ServiceAccount", "name": "finetune-finetune-operator", "namespace": NAMESPACE}
    bindings = rendered.all("RoleBinding", "ClusterRoleBinding")
    assert all(binding["subjects"] == [operator] for binding in bindings)
    assert len(bindings) == len(rendered.all("Role", "ClusterRole"))
    assert rendered.pod["serviceAccountName"] == operator["name"]


def test_grants_no_wildcards_and_no_sensitive_resources(chart: Chart) -> None:
    permissions_of_all_roles = granted(*chart.render().all("Role", "ClusterRole"))
    assert not any("*" in permission for permission in permissions_of_all_roles)
    assert not SENSITIVE & {resource for _, resource, _ in permissions_of_all_roles}


def test_view_and_edit_roles_include_finetunejobs(chart: Chart) -> None:
    user_roles = [role for role in chart.render().all("ClusterRole") if "aggregat" in str(role["metadata"]["labels"])]
    verbs = {role["metadata"]["name"]: {verb for _, _, verb in granted(role)} for role in user_roles}
    assert verbs == {
        "finetune-finetune-operator-view": {"get", "list", "watch"},
        "finetune-finetune-operator-edit": {"create", "update", "patch", "delete", "deletecollection"},
    }


def test_rbac_can_be_disabled(chart: Chart) -> None:
    rendered = chart.render(rbac={"create": False, "aggregate": False})
    assert rendered.all("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []
