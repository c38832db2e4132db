"""Converts JSON Schema, which pydantic generates, to the structural schema that a CustomResourceDefinition requires.

References are inlined, `X | None` becomes an optional X, and a union discriminated by `type` becomes one object with
the fields of all members and CEL rules that tie fields to types.
"""

from __future__ import annotations

import functools
import operator

from finetune_api.descriptions import Schema, first_paragraph, join_or, merge_descriptions, without

_DROPPED = ("title", "additionalProperties", "discriminator", "examples", "const")
_EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def to_structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Convert pydantic's JSON Schema to a structural schema; defaults stay in it.

    Raises:
        TypeError: a union is not discriminated by `type`, or its members give a field different constraints.
    """
    schema = _resolve(schema, definitions)
    if schema.get("default", "") is None:
        schema = without(schema, "default")
    if "description" in schema:
        schema = schema | {"description": first_paragraph(schema["description"])}
    if "oneOf" in schema:
        return _flatten_union(schema, definitions)
    if schema.get("x-kubernetes-int-or-string"):
        options = (without(option, "type") for option in schema["anyOf"])
        return functools.reduce(operator.or_, options, without(schema, "anyOf", "title"))
    result: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: to_structural(child, definitions) for name, child in value.items()}
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            result[key] = to_structural(value, definitions)
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
        return _resolve(definitions[schema["$ref"]], definitions) | without(schema, "$ref")
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if len(options) == 1:
        return _resolve(options[0], definitions) | without(schema, "anyOf")
    if options and "x-kubernetes-int-or-string" not in schema:
        raise TypeError(f"a structural schema cannot express this union: {schema}")
    return schema


def _flatten_union(union: Schema, definitions: dict[str, Schema]) -> Schema:
    """Merge the members of a union discriminated by `type` into one object, with CEL rules that tie fields to types.

    `{type: SGD, momentum} | {type: Adam, beta1}` becomes `{type, momentum, beta1}` with the rules
    "momentum must not be set unless type is SGD" and "beta1 must not be set unless type is Adam".
    """
    members = {_type_of(member): member for member in (to_structural(it, definitions) for it in union["oneOf"])}
    required = sorted(set.intersection(*(set(member.get("required", [])) for member in members.values())))
    flattened = {
        "type": "object",
        "required": ["type", *(name for name in required if name != "type")],
        "properties": _merge_properties(members),
        "x-kubernetes-validations": [*_member_rules(members, required), *_forbidden_rules(members)],
    }
    return flattened | {key: value for key, value in union.items() if key == "description"}


def _merge_properties(members: dict[str, Schema]) -> Schema:
    """The fields of all members; a field must have the same constraints in all members that have it."""
    summaries = "\n".join(f"- {tag}: {member['description']}" for tag, member in members.items())
    description = f"Type, which determines the fields that may be set:\n{summaries}"
    merged: Schema = {"type": {"type": "string", "enum": list(members), "description": description}}
    for name, tags in _types_by_field(members).items():
        variants = {tag: members[tag]["properties"][name] for tag in tags}
        first, *others = (without(variant, "description", "default") for variant in variants.values())
        if name != "type":
            if any(other != first for other in others):
                raise TypeError(f"{name} does not have the same constraints in {', '.join(tags)}")
            merged[name] = first | {"description": merge_descriptions(name, members)}
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
