"""Which nodes and which company a pod prefers or needs, in Kubernetes' own shape (`core/v1.Affinity`).

Without `namespaces` and `namespaceSelector`: a job sees only its own namespace.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune_api.base import LabelValue, Model, ObjectName, QualifiedName, Rule, without_nulls

Weight = Annotated[int, Field(ge=1, le=100)]
Values = Annotated[list[LabelValue], Field(max_length=64)]
# Keys are not looked at here: a rule about the keys of maps in lists is beyond the API server's budget for a schema.
MatchLabels = Annotated[dict[str, LabelValue], Field(max_length=32), BeforeValidator(without_nulls)]


class Requirement(Model):
    """Something that is demanded of a label's value."""

    rules = (
        Rule(
            field="values",
            message="operators In and NotIn need values",
            cel="!(self.operator in ['In', 'NotIn']) || (has(self.values) && self.values.size() > 0)",
            holds=lambda it: it.operator not in ("In", "NotIn") or bool(it.values),
        ),
        Rule(
            field="values",
            message="operators Exists and DoesNotExist take no values",
            cel="!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || self.values.size() == 0",
            holds=lambda it: it.operator not in ("Exists", "DoesNotExist") or not it.values,
        ),
    )

    key: QualifiedName
    """Name of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How its value is compared."""
    values: Values | None = None
    """With what."""


class NodeRequirement(Model):
    """Something that is demanded of a node's label."""

    rules = (
        *Requirement.rules,
        Rule(
            field="values",
            message="operators Gt and Lt need one whole number in values",
            cel="!(self.operator in ['Gt', 'Lt']) || "
            "(has(self.values) && self.values.size() == 1 && self.values[0].matches('^[0-9]+$'))",
            holds=lambda it: (
                it.operator not in ("Gt", "Lt")
                or (it.values is not None and len(it.values) == 1 and it.values[0].isdecimal())
            ),
        ),
    )

    key: QualifiedName
    """Name of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How its value is compared."""
    values: Values | None = None
    """With what."""


class FieldRequirement(Model):
    """Something that is demanded of a node itself: the only field to ask for is its name."""

    key: Literal["metadata.name"]
    """Which field."""
    operator: Literal["In", "NotIn"]
    """How its value is compared."""
    values: Annotated[list[ObjectName], Field(min_length=1, max_length=1)]
    """With what: one name."""


class NodeTerm(Model):
    """Requirements that a node has to meet, all of them."""

    rules = (
        Rule(
            field="matchExpressions",
            message="set matchExpressions, matchFields or both",
            cel="has(self.matchExpressions) || has(self.matchFields)",
            holds=lambda it: it.match_expressions is not None or it.match_fields is not None,
        ),
    )

    match_expressions: Annotated[list[NodeRequirement], Field(min_length=1, max_length=16)] | None = None
    """About the node's labels."""
    match_fields: Annotated[list[FieldRequirement], Field(min_length=1, max_length=16)] | None = None
    """About the node itself."""


class NodeSelector(Model):
    """Terms, one of which a node has to meet."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=16)]
    """The terms."""


class PreferredNode(Model):
    """A term, and how much it weighs."""

    weight: Weight
    """From 1 to 100."""
    preference: NodeTerm
    """The term."""


class NodeAffinity(Model):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What a node must have."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNode], Field(max_length=16)] | None
    ) = None
    """What a node had better have."""


class LabelSelector(Model):
    """Which pods, by their labels; all parts have to match."""

    match_labels: MatchLabels | None = None
    """Labels with their values."""
    match_expressions: Annotated[list[Requirement], Field(max_length=16)] | None = None
    """About labels."""


class PodTerm(Model):
    """Pods of the job's namespace, and what counts as the same place."""

    label_selector: LabelSelector
    """Which pods."""
    topology_key: QualifiedName
    """Nodes with the same value of this label are one place, e.g. `kubernetes.io/hostname`."""


class PreferredPods(Model):
    """A term, and how much it weighs."""

    weight: Weight
    """From 1 to 100."""
    pod_affinity_term: PodTerm
    """The term."""


class PodAffinity(Model):
    """Near which pods, or away from which."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodTerm], Field(max_length=16)] | None = None
    """What must be."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=16)] | None
    ) = None
    """What had better be."""


class Affinity(Model):
    """Which nodes, near which pods, away from which."""

    node_affinity: NodeAffinity | None = None
    """Which nodes."""
    pod_affinity: PodAffinity | None = None
    """Near which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods."""
