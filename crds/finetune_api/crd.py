"""Generates the CustomResourceDefinition from the models; `make generate` writes it, a test keeps it fresh.

pydantic gives JSON Schema; the API server takes a structural subset of it. `_structural` leads from one to the other:
references are inlined, `X | None` becomes an optional X, a union told apart by `type` becomes one object with every
member's fields and CEL rules that say which field belongs to which type. Defaults are not written: they would turn up
in stored objects and blur what the user wrote; `finetune plan` shows them.
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
    """The document as YAML, block style."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda *_: True
    stream = StringIO()
    yaml.dump(document, stream)
    return "# Generated from finetune_api by `make generate`; edit the models instead.\n" + stream.getvalue()


def _object_schema() -> Schema:
    schema = FineTuneJob.model_json_schema(by_alias=True, ref_template="{model}")
    root = _structural(schema, schema["$defs"])
    root["properties"]["apiVersion"] = root["properties"]["kind"] = {"type": "string"}
    # Of metadata the API server takes rules about the name only.
    name = root["properties"]["metadata"]["properties"]["name"]
    root["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}
    root["properties"]["status"]["default"] = {"observedGeneration": -1}
    root["required"] = ["metadata", "spec"]
    root["x-kubernetes-validations"] = _immutability()
    return root


def _immutability() -> list[Schema]:
    """One rule per spec field, so that the refusal names it; `has` on both sides closes unset-then-set."""
    fields = [field.alias or name for name, field in JobSpec.model_fields.items()]
    return [
        {
            "rule": "!has(oldSelf.status) || !has(oldSelf.status.attempt) || oldSelf.status.attempt < 1 || "
            f"(has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
            f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name}))",
            "message": f"spec.{name} is immutable once an attempt exists; delete the job and create a new one",
            "fieldPath": f".spec.{name}",
        }
        for name in fields
        if name not in ALWAYS_MUTABLE
    ]


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """JSON Schema as pydantic writes it, as the structural schema that the API server takes."""
    schema = _unwrapped(schema, definitions)
    if "oneOf" in schema:
        return _flattened(schema, definitions)
    if schema.get("x-kubernetes-int-or-string"):
        options = (_beside(option, "type") for option in schema["anyOf"])
        return functools.reduce(operator.or_, options, _beside(schema, "anyOf", "title"))
    result: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: _structural(child, definitions) for name, child in value.items()}
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            result[key] = _structural(value, definitions)
        elif key in _EXCLUSIVE:
            result[_EXCLUSIVE[key]] = value
            result[key] = True
        elif key not in _DROPPED and key != "$defs":
            result[key] = value
    if "const" in schema:
        result["enum"] = [schema["const"]]
    return result


def _unwrapped(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """References followed and `anyOf: [X, null]` reduced to X; what stands beside them (a description) wins."""
    if "$ref" in schema:
        return _unwrapped(definitions[schema["$ref"]], definitions) | _beside(schema, "$ref")
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _unwrapped(options[0], definitions) | _beside(schema, "anyOf")
    if options and "x-kubernetes-int-or-string" not in schema:
        raise TypeError(f"a union the API server cannot express: {schema}")
    return schema


def _beside(schema: Schema, *keys: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in keys and key != "default"}


def _described(schema: Schema) -> Schema:
    return {"description": schema["description"]} if "description" in schema else {}


def _flattened(union: Schema, definitions: dict[str, Schema]) -> Schema:
    """A union told apart by `type`, as one object whose CEL rules say which field belongs to which type.

    Of `{type: SGD, momentum} | {type: Adam, beta1}` it makes `{type, momentum, beta1}` with the rules
    "momentum is a field of SGD only" and "beta1 is a field of Adam only".
    """
    members = {_tag(member): member for member in (_structural(option, definitions) for option in union["oneOf"])}
    required = sorted(set.intersection(*(set(member.get("required", [])) for member in members.values())))
    return {
        "type": "object",
        "required": ["type", *(name for name in required if name != "type")],
        "properties": _merged_properties(members),
        "x-kubernetes-validations": [*_members_rules(members, required), *_foreign_rules(members)],
    } | _described(union)


def _merged_properties(members: dict[str, Schema]) -> Schema:
    """The fields of all members; a structural schema can give a name one meaning only."""
    which = "Which one; the fields beside it are those of this type."
    merged: Schema = {"type": {"type": "string", "enum": list(members), "description": which}}
    for tag, member in members.items():
        for name, schema in member["properties"].items():
            if name != "type" and _bounds(merged.setdefault(name, schema)) != _bounds(schema):
                raise TypeError(f"{tag}.{name} has other bounds than its namesake in this union")
    return merged


def _members_rules(members: dict[str, Schema], required: list[str]) -> list[Schema]:
    """The members' own rules: once where all share one, else for the type that has it."""
    first, *others = members.values()
    shared = [rule for rule in _rules(first) if all(rule in _rules(other) for other in others)]
    rules = list(shared)
    for tag, member in members.items():
        rules += [_needs_rule(tag, name) for name in member.get("required", []) if name not in required]
        rules += [_guarded(tag, rule) for rule in _rules(member) if rule not in shared]
    return rules


def _foreign_rules(members: dict[str, Schema]) -> list[Schema]:
    """For every field that not all members have, which of them do."""
    names = dict.fromkeys(name for member in members.values() for name in member["properties"])
    owners = {name: [tag for tag, member in members.items() if name in member["properties"]] for name in names}
    return [_foreign_rule(name, tags) for name, tags in owners.items() if len(tags) < len(members)]


def _rules(member: Schema) -> list[Schema]:
    return list(member.get("x-kubernetes-validations", []))


def _tag(member: Schema) -> str:
    return str(member["properties"]["type"]["enum"][0])


def _bounds(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "description"}


def _needs_rule(tag: str, name: str) -> Schema:
    return {
        "rule": f"self.type != '{tag}' || has(self.{name})",
        "message": f"{tag} needs {name}",
        "fieldPath": f".{name}",
    }


def _guarded(tag: str, rule: Schema) -> Schema:
    return rule | {"rule": f"self.type != '{tag}' || ({rule['rule']})"}


def _foreign_rule(name: str, tags: list[str]) -> Schema:
    listed = ", ".join(f"'{tag}'" for tag in tags)
    return {
        "rule": f"!has(self.{name}) || self.type in [{listed}]",
        "message": f"{name} is a field of {', '.join(tags)} only",
        "fieldPath": f".{name}",
    }


def main() -> None:
    """Write the CRD into each folder named on the command line."""
    for folder in sys.argv[1:]:
        target = Path(folder) / f"{JOB_PLURAL}.{GROUP}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_yaml(job_crd()), encoding="utf-8")


if __name__ == "__main__":
    main()
