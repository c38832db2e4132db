"""Which nodes and which company a pod prefers or needs, in Kubernetes' own shape (`core/v1.Affinity`).

Without `namespaces` and `namespaceSelector`: a job sees only its own namespace.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune_api.base import LabelValue, Model, ObjectName, QualifiedName, Rule, without_nulls

Weight = Annotated[int, Field(ge=1, le=100)]
Values = Annotated[list[LabelValue], Field(max_length=64)]
# Keys are not validated here: a CEL rule on the keys of a map within a list exceeds the cost limit of the API server.
MatchLabels = Annotated[dict[str, LabelValue], Field(max_length=32), BeforeValidator(without_nulls)]


class LabelSelectorRequirement(Model):
    """Something that is demanded of a label's value."""

    rules = (
        Rule(
            field="values",
            message="values must be set when operator is In or NotIn",
            cel="!(self.operator in ['In', 'NotIn']) || (has(self.values) && self.values.size() > 0)",
            is_valid=lambda requirement: requirement.operator not in ("In", "NotIn") or bool(requirement.values),
        ),
        Rule(
            field="values",
            message="values must not be set when operator is Exists or DoesNotExist",
            cel="!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || self.values.size() == 0",
            is_valid=lambda requirement: (
                requirement.operator not in ("Exists", "DoesNotExist") or not requirement.values
            ),
        ),
    )

    key: QualifiedName
    """Name of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How its value is compared."""
    values: Values | None = None
    """With what."""


def _is_one_integer(values: list[str] | None) -> bool:
    return values is not None and len(values) == 1 and values[0].isdecimal()


class NodeSelectorRequirement(Model):
    """Something that is demanded of a node's label."""

    rules = (
        *LabelSelectorRequirement.rules,
        Rule(
            field="values",
            message="values must hold a single integer when operator is Gt or Lt",
            cel="!(self.operator in ['Gt', 'Lt']) || "
            "(has(self.values) && self.values.size() == 1 && self.values[0].matches('^[0-9]+$'))",
            is_valid=lambda requirement: (
                requirement.operator not in ("Gt", "Lt") or _is_one_integer(requirement.values)
            ),
        ),
    )

    key: QualifiedName
    """Name of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How its value is compared."""
    values: Values | None = None
    """With what."""


class NodeFieldSelectorRequirement(Model):
    """Something that is demanded of a node itself: the only field to ask for is its name."""

    key: Literal["metadata.name"]
    """Which field."""
    operator: Literal["In", "NotIn"]
    """How its value is compared."""
    values: Annotated[list[ObjectName], Field(min_length=1, max_length=1)]
    """With what: one name."""


class NodeSelectorTerm(Model):
    """Requirements that a node has to meet, all of them."""

    rules = (
        Rule(
            field="matchExpressions",
            message="set at least one of matchExpressions and matchFields",
            cel="has(self.matchExpressions) || has(self.matchFields)",
            is_valid=lambda term: term.match_expressions is not None or term.match_fields is not None,
        ),
    )

    match_expressions: Annotated[list[NodeSelectorRequirement], Field(min_length=1, max_length=16)] | None = None
    """About the node's labels."""
    match_fields: Annotated[list[NodeFieldSelectorRequirement], Field(min_length=1, max_length=16)] | None = None
    """About the node itself."""


class NodeSelector(Model):
    """Terms, one of which a node has to meet."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=16)]
    """The terms."""


class PreferredSchedulingTerm(Model):
    """A term, and how much it weighs."""

    weight: Weight
    """From 1 to 100."""
    preference: NodeSelectorTerm
    """The term."""


class NodeAffinity(Model):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What a node must have."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16)] | None
    ) = None
    """What a node had better have."""


class LabelSelector(Model):
    """Which pods, by their labels; all parts have to match."""

    match_labels: MatchLabels | None = None
    """Labels with their values."""
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=16)] | None = None
    """About labels."""


class PodAffinityTerm(Model):
    """Pods of the job's namespace, and what counts as the same place."""

    label_selector: LabelSelector
    """Which pods."""
    topology_key: QualifiedName
    """Nodes with the same value of this label are one place, e.g. `kubernetes.io/hostname`."""


class WeightedPodAffinityTerm(Model):
    """A term, and how much it weighs."""

    weight: Weight
    """From 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The term."""


class PodAffinity(Model):
    """Near which pods, or away from which."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=16)] | None
    ) = None
    """What must be."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], Field(max_length=16)] | None
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
