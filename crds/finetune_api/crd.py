"""Generates the CustomResourceDefinition from the models; `make generate` writes it, a test compares it.

pydantic generates JSON Schema; the API server requires a structural schema, a subset of it. `_to_structural` converts
one to the other: references are inlined, `X | None` becomes an optional X, and a union discriminated by `type` becomes
one object with the fields of all members and CEL rules that tie fields to types. Defaults are omitted: the API server
would write them into stored objects, where they cannot be told from what the user wrote; `finetune plan` shows them.
"""

from __future__ import annotations

import functools
import operator
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from finetune_api.job import ALWAYS_MUTABLE, FineTuneJob, JobSpec
from finetune_api.names import GROUP, JOB_KIND, JOB_PLURAL, VERSION

Schema = dict[str, Any]

_DROPPED = ("title", "default", "additionalProperties", "discriminator", "examples", "const")
_EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}

COLUMNS: list[Schema] = [
    {"name": "Status", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Succeeded")].reason'},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.summary"},
    {"name": "Loss", "type": "number", "jsonPath": '.status.metrics[?(@.name=="train/loss")].value'},
    {
        "name": "Best",
        "type": "number",
        "jsonPath": ".status.best.value",
        "description": "Best value of the metric that selects the best checkpoint",
    },
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.estimatedCompletionTime"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Queue", "type": "string", "jsonPath": ".spec.queueName", "priority": 1},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.source", "priority": 1},
    {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Succeeded")].message',
        "priority": 1,
    },
]


def job_crd() -> Schema:
    """The CustomResourceDefinition of FineTuneJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{JOB_PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": JOB_KIND,
                "listKind": f"{JOB_KIND}List",
                "plural": JOB_PLURAL,
                "singular": JOB_KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["all", "finetune"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": COLUMNS,
                    "selectableFields": [{"jsonPath": ".spec.suspend"}, {"jsonPath": ".spec.queueName"}],
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def to_yaml(document: Schema) -> str:
    """The document as YAML in block style, with a header that says how it was generated."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda *_: True
    stream = StringIO()
    yaml.dump(document, stream)
    return "# Generated from finetune_api by `make generate`; edit the models instead.\n" + stream.getvalue()


def _object_schema() -> Schema:
    schema = FineTuneJob.model_json_schema(by_alias=True, ref_template="{model}")
    root = _to_structural(schema, schema["$defs"])
    root["properties"]["apiVersion"] = root["properties"]["kind"] = {"type": "string"}
    # The API server allows rules about no other field of metadata than the name.
    name = root["properties"]["metadata"]["properties"]["name"]
    root["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}
    root["properties"]["status"]["default"] = {"observedGeneration": -1}
    root["required"] = ["metadata", "spec"]
    root["x-kubernetes-validations"] = _immutability_rules()
    return root


def _immutability_rules() -> list[Schema]:
    """One rule per spec field, so that the error names the field; comparing `has` catches adding and removing it."""
    fields = [field.alias or name for name, field in JobSpec.model_fields.items()]
    return [
        {
            "rule": "!has(oldSelf.status) || !has(oldSelf.status.attempt) || oldSelf.status.attempt < 1 || "
            f"(has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
            f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name}))",
            "message": f"spec.{name} is immutable once an attempt exists; delete and recreate the job to change it",
            "fieldPath": f".spec.{name}",
        }
        for name in fields
        if name not in ALWAYS_MUTABLE
    ]


def _to_structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Convert pydantic's JSON Schema to a structural schema."""
    schema = _resolve(schema, definitions)
    if "oneOf" in schema:
        return _flatten_union(schema, definitions)
    if schema.get("x-kubernetes-int-or-string"):
        options = (_without(option, "type") for option in schema["anyOf"])
        return functools.reduce(operator.or_, options, _without(schema, "anyOf", "title"))
    result: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: _to_structural(child, definitions) for name, child in value.items()}
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            result[key] = _to_structural(value, definitions)
        elif key in _EXCLUSIVE:
            result[_EXCLUSIVE[key]] = value
            result[key] = True
        elif key not in _DROPPED and key != "$defs":
            result[key] = value
    if "const" in schema:
        result["enum"] = [schema["const"]]
    return result


def _resolve(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Inline references and reduce `anyOf: [X, null]` to X; keys next to them (a description) take precedence."""
    if "$ref" in schema:
        return _resolve(definitions[schema["$ref"]], definitions) | _without(schema, "$ref")
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _resolve(options[0], definitions) | _without(schema, "anyOf")
    if options and "x-kubernetes-int-or-string" not in schema:
        raise TypeError(f"a structural schema cannot express this union: {schema}")
    return schema


def _without(schema: Schema, *keys: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in keys and key != "default"}


def _flatten_union(union: Schema, definitions: dict[str, Schema]) -> Schema:
    """Merge the members of a union discriminated by `type` into one object, with CEL rules that tie fields to types.

    `{type: SGD, momentum} | {type: Adam, beta1}` becomes `{type, momentum, beta1}` with the rules
    "momentum must not be set unless type is SGD" and "beta1 must not be set unless type is Adam".
    """
    members = {_type_of(member): member for member in (_to_structural(it, definitions) for it in union["oneOf"])}
    required = sorted(set.intersection(*(set(member.get("required", [])) for member in members.values())))
    flattened = {
        "type": "object",
        "required": ["type", *(name for name in required if name != "type")],
        "properties": _merge_properties(members),
        "x-kubernetes-validations": [*_member_rules(members, required), *_forbidden_rules(members)],
    }
    return flattened | {key: value for key, value in union.items() if key == "description"}


def _merge_properties(members: dict[str, Schema]) -> Schema:
    """The fields of all members; a field name must have the same schema in all members that have it."""
    which = "Which one; the fields beside it are those of this type."
    merged: Schema = {"type": {"type": "string", "enum": list(members), "description": which}}
    for tag, member in members.items():
        for name, schema in member["properties"].items():
            if name != "type" and _without(merged.setdefault(name, schema), "description") != _without(
                schema, "description"
            ):
                raise TypeError(f"{name} of {tag} has another schema than {name} of the other members of this union")
    return merged


def _member_rules(members: dict[str, Schema], required: list[str]) -> list[Schema]:
    """The rules of the members: those that all members share once, the others restricted to their type."""
    first, *others = members.values()
    shared = [rule for rule in _rules_of(first) if all(rule in _rules_of(other) for other in others)]
    rules = list(shared)
    for tag, member in members.items():
        rules += [_required_rule(tag, name) for name in member.get("required", []) if name not in required]
        rules += [_restrict_to_type(tag, rule) for rule in _rules_of(member) if rule not in shared]
    return rules


def _forbidden_rules(members: dict[str, Schema]) -> list[Schema]:
    """One rule for every field that not all members have."""
    return [_forbidden_rule(name, tags) for name, tags in _types_by_field(members).items() if len(tags) < len(members)]


def _types_by_field(members: dict[str, Schema]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for member in members.values() for name in member["properties"])
    return {name: [tag for tag, member in members.items() if name in member["properties"]] for name in names}


def _rules_of(member: Schema) -> list[Schema]:
    return list(member.get("x-kubernetes-validations", []))


def _type_of(member: Schema) -> str:
    return str(member["properties"]["type"]["enum"][0])


def _required_rule(tag: str, name: str) -> Schema:
    return {
        "rule": f"self.type != '{tag}' || has(self.{name})",
        "message": f"{name} is required when type is {tag}",
        "fieldPath": f".{name}",
    }


def _restrict_to_type(tag: str, rule: Schema) -> Schema:
    return rule | {"rule": f"self.type != '{tag}' || ({rule['rule']})"}


def _forbidden_rule(name: str, tags: list[str]) -> Schema:
    return {
        "rule": f"!has(self.{name}) || self.type in [{', '.join(repr(tag) for tag in tags)}]",
        "message": f"{name} must not be set unless type is {join_or(tags)}",
        "fieldPath": f".{name}",
    }


def join_or(words: list[str]) -> str:
    """`A`, `A or B`, `A, B or C`."""
    *head, last = words
    return f"{', '.join(head)} or {last}" if head else last


def main() -> None:
    """Write the CRD into each directory named on the command line."""
    for folder in sys.argv[1:]:
        target = Path(folder) / f"{JOB_PLURAL}.{GROUP}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_yaml(job_crd()), encoding="utf-8")


if __name__ == "__main__":
    main()
