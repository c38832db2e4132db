"""Affinity of the trainer pods: the fields of `core/v1.Affinity`, in core/v1 wording.

`namespaces` and `namespaceSelector` are omitted: a job cannot refer to pods of other namespaces.
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
    """A label selector requirement is a selector that contains values, a key, and an operator that relates the key and
    values."""

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
    """The label key that the selector applies to."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """A key's relationship to a set of values."""
    values: Values | None = None
    """An array of string values. If the operator is In or NotIn, the values array must be non-empty. If the operator is
    Exists or DoesNotExist, the values array must be empty."""


def _is_one_integer(values: list[str] | None) -> bool:
    return values is not None and len(values) == 1 and values[0].isdecimal()


class NodeSelectorRequirement(Model):
    """A node selector requirement is a selector that contains values, a key, and an operator that relates the key and
    values."""

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
    """The label key that the selector applies to."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """A key's relationship to a set of values."""
    values: Values | None = None
    """An array of string values. If the operator is In or NotIn, the values array must be non-empty. If the operator is
    Exists or DoesNotExist, the values array must be empty. If the operator is Gt or Lt, the values array must have a
    single element, which will be interpreted as an integer."""


class NodeFieldSelectorRequirement(Model):
    """A node selector requirement on a field of the node. The only supported field is metadata.name."""

    key: Literal["metadata.name"]
    """The field that the selector applies to."""
    operator: Literal["In", "NotIn"]
    """A field's relationship to a set of values."""
    values: Annotated[list[ObjectName], Field(min_length=1, max_length=1)]
    """An array with the name of one node."""


class NodeSelectorTerm(Model):
    """A node selector term is a list of requirements, which are ANDed. At least one of the fields is set."""

    rules = (
        Rule(
            field="matchExpressions",
            message="set at least one of matchExpressions and matchFields",
            cel="has(self.matchExpressions) || has(self.matchFields)",
            is_valid=lambda term: term.match_expressions is not None or term.match_fields is not None,
        ),
    )

    match_expressions: Annotated[list[NodeSelectorRequirement], Field(min_length=1, max_length=16)] | None = None
    """A list of node selector requirements by node's labels. If not set, labels are not considered."""
    match_fields: Annotated[list[NodeFieldSelectorRequirement], Field(min_length=1, max_length=16)] | None = None
    """A list of node selector requirements by node's fields. If not set, fields are not considered."""


class NodeSelector(Model):
    """A node selector represents the union of the results of one or more label queries over a set of nodes; that is, it
    represents the OR of the selectors represented by the node selector terms."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=16)]
    """A list of node selector terms. The terms are ORed."""


class PreferredSchedulingTerm(Model):
    """A node selector term with the weight that a matching node gets."""

    weight: Weight
    """Weight associated with matching the corresponding nodeSelectorTerm, in the range 1-100."""
    preference: NodeSelectorTerm
    """A node selector term, associated with the corresponding weight."""


class NodeAffinity(Model):
    """A group of node affinity scheduling rules."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """If the affinity requirements specified by this field are not met at scheduling time, the pod will not be
    scheduled onto the node. If not set, there are no requirements."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16)] | None
    ) = None
    """The scheduler will prefer to schedule pods to nodes that satisfy the affinity expressions specified by this
    field, but it may choose a node that violates one or more of the expressions. If not set, no node is preferred."""


class LabelSelector(Model):
    """A label selector is a label query over a set of resources. The results of matchLabels and matchExpressions are
    ANDed. An empty label selector matches all objects."""

    match_labels: MatchLabels | None = None
    """A map of {key,value} pairs. A single {key,value} in the matchLabels map is equivalent to an element of
    matchExpressions, whose key field is key, the operator is In, and the values array contains only value. If not set,
    it matches all."""
    match_expressions: Annotated[list[LabelSelectorRequirement], Field(max_length=16)] | None = None
    """A list of label selector requirements. The requirements are ANDed. If not set, it matches all."""


class PodAffinityTerm(Model):
    """Defines a set of pods (namely those matching the labelSelector in the namespace of the job) that this pod should
    be co-located (affinity) or not co-located (anti-affinity) with, where co-located is defined as running on a node
    whose value of the label with key topologyKey matches that of any node on which a pod of the set of pods is
    running."""

    label_selector: LabelSelector
    """A label query over a set of resources, in this case pods."""
    topology_key: QualifiedName
    """This pod should be co-located (affinity) or not co-located (anti-affinity) with the pods matching the
    labelSelector, where co-located is defined as running on a node whose value of the label with key topologyKey
    matches that of any node on which any of the selected pods is running, e.g. `kubernetes.io/hostname`."""


class WeightedPodAffinityTerm(Model):
    """A pod affinity term with the weight that a matching node gets."""

    weight: Weight
    """Weight associated with matching the corresponding podAffinityTerm, in the range 1-100."""
    pod_affinity_term: PodAffinityTerm
    """A pod affinity term, associated with the corresponding weight."""


class PodAffinity(Model):
    """A group of inter pod affinity scheduling rules."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=16)] | None
    ) = None
    """If the affinity requirements specified by this field are not met at scheduling time, the pod will not be
    scheduled onto the node. If not set, there are no requirements."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], Field(max_length=16)] | None
    ) = None
    """The scheduler will prefer to schedule pods to nodes that satisfy the affinity expressions specified by this
    field, but it may choose a node that violates one or more of the expressions. If not set, no node is preferred."""


class PodAntiAffinity(Model):
    """A group of inter pod anti-affinity scheduling rules."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodAffinityTerm], Field(max_length=16)] | None
    ) = None
    """If the anti-affinity requirements specified by this field are not met at scheduling time, the pod will not be
    scheduled onto the node. If not set, there are no requirements."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], Field(max_length=16)] | None
    ) = None
    """The scheduler will prefer to schedule pods to nodes that satisfy the anti-affinity expressions specified by this
    field, but it may choose a node that violates one or more of the expressions. If not set, no node is preferred."""


class Affinity(Model):
    """A group of affinity scheduling rules."""

    node_affinity: NodeAffinity | None = None
    """Describes node affinity scheduling rules for the pod. If not set, there are none."""
    pod_affinity: PodAffinity | None = None
    """Describes pod affinity scheduling rules (e.g. co-locate this pod in the same node, zone, etc. as some other
    pods). If not set, there are none."""
    pod_anti_affinity: PodAntiAffinity | None = None
    """Describes pod anti-affinity scheduling rules (e.g. avoid putting this pod in the same node, zone, etc. as some
    other pods). If not set, there are none."""
