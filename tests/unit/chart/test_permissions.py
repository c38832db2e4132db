"""What the operator may do is what its own documentation says it needs, and nothing that would be dangerous to lose."""

from collections.abc import Iterator

import pytest

import finetune_operator
from unit.chart.rendering import NAMESPACE, Chart, Object

Permission = tuple[str, str, str]
"""API group, resource and verb."""

HERE = "its own namespace"
DANGEROUS = {"secrets", "pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token", "nodes", "roles"}


def documented(*, here: bool) -> set[Permission]:
    """The table in the docstring of `finetune_operator`: of its own namespace, or of the watched ones."""
    assert finetune_operator.__doc__ is not None
    lines = finetune_operator.__doc__.split("API group", 1)[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {
        (group.replace("(core)", ""), resource, verb)
        for group, resource, verbs, where in rows
        if (where == HERE) is here
        for verb in verbs.split(", ")
    }


def granted(*roles: Object) -> set[Permission]:
    return {permission for role in roles for rule in role["rules"] for permission in permissions(rule)}


def permissions(rule: Object) -> Iterator[Permission]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            yield from ((group, resource, verb) for verb in rule["verbs"])


def own_roles(chart: Chart, *kinds: str, **values: object) -> list[Object]:
    """The operator's roles; those that are aggregated into `view` and `edit` are for people."""
    roles = chart.render(rbac={"aggregate": False}, **values).all(*kinds)
    return sorted(roles, key=lambda role: role["metadata"].get("namespace", ""))


def test_the_operator_may_do_what_it_documents_in_all_namespaces(chart: Chart) -> None:
    (role,) = own_roles(chart, "ClusterRole")
    assert granted(role) == documented(here=False)


def test_it_may_hold_a_lease_in_its_own_namespace(chart: Chart) -> None:
    (role,) = own_roles(chart, "Role")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert granted(role) == documented(here=True)


def test_with_namespaces_named_it_may_do_nothing_elsewhere(chart: Chart) -> None:
    values = {"watchNamespaces": ["team-a", "team-b"]}
    assert own_roles(chart, "ClusterRole", "ClusterRoleBinding", **values) == []
    lease, *watched = own_roles(chart, "Role", **values)
    assert lease["metadata"]["namespace"] == NAMESPACE
    assert [role["metadata"]["namespace"] for role in watched] == ["team-a", "team-b"]
    assert all(granted(role) == documented(here=False) for role in watched)


@pytest.mark.parametrize("namespaces", [[], ["team-a"]])
def test_every_role_is_bound_to_the_operator_alone(chart: Chart, namespaces: list[str]) -> None:
    rendered = chart.render(rbac={"aggregate": False}, watchNamespaces=namespaces)
    operator = {"kind": "ServiceAccount", "name": "finetune-finetune-operator", "namespace": NAMESPACE}
    bindings = rendered.all("RoleBinding", "ClusterRoleBinding")
    assert all(binding["subjects"] == [operator] for binding in bindings)
    assert len(bindings) == len(rendered.all("Role", "ClusterRole"))
    assert rendered.pod["serviceAccountName"] == operator["name"]


def test_nothing_dangerous_is_granted(chart: Chart) -> None:
    everything = granted(*chart.render().all("Role", "ClusterRole"))
    assert not any("*" in permission for permission in everything)
    assert not DANGEROUS & {resource for _, resource, _ in everything}


def test_whoever_may_edit_a_namespace_may_edit_its_jobs(chart: Chart) -> None:
    people = [role for role in chart.render().all("ClusterRole") if "aggregat" in str(role["metadata"]["labels"])]
    verbs = {role["metadata"]["name"]: {verb for _, _, verb in granted(role)} for role in people}
    assert verbs == {
        "finetune-finetune-operator-view": {"get", "list", "watch"},
        "finetune-finetune-operator-edit": {"create", "update", "patch", "delete", "deletecollection"},
    }


def test_an_administrator_may_grant_them_instead(chart: Chart) -> None:
    rendered = chart.render(rbac={"create": False, "aggregate": False})
    assert rendered.all("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []
