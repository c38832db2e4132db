"""Generates valid specs that cover every field of the API, and invalid ones with one mistake each.

Specs are generated from the JSON Schema that pydantic derives from the models, not from the CRD. Cross-field rules,
which the schema does not express, are satisfied by rejection sampling: an object is drawn until its model accepts it.
"""

from __future__ import annotations

import copy
import operator
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from finetune_api import FineTuneJob, JobSpec
from finetune_api.base import Model, Rule
from finetune_api.field_paths import format_path
from finetune_api.kubectl_yaml import FieldPath, PathElement

SchemaPath = tuple[str, ...]
"""Path in the schema: field names, `[]` for list items, `{}` for map values, `<SGD>` for a member of a union."""

MAX_DRAWS = 4000

UNSUPPORTED = ("entrypoint", "modules.[].adapter")
"""Fields that are not yet supported: no valid job has them."""


@dataclass(frozen=True)
class InvalidJob:
    """A job with one mistake.

    Args:
        manifest: the job.
        mistake: what is wrong, e.g. `too large`, or the message of the violated rule.
        path: the field in the schema.
        field: the field that the error must name, e.g. `spec.modules[0].name`.
    """

    manifest: dict[str, Any]
    mistake: str
    path: SchemaPath
    field: str


class SpecGenerator:
    """Generates specs from the schemas of the models."""

    def __init__(self) -> None:
        root = FineTuneJob.model_json_schema(by_alias=True)
        self._definitions = root["$defs"]
        self.models = {model.__name__: model for model in _subclasses(Model)}
        self._pools: dict[str, list[str]] = {}

    def schema(self, path: SchemaPath) -> dict[str, Any]:
        """The schema at a path."""
        schema = self._definitions["JobSpec"]
        for step in path:
            schema = self.resolve(dict(self.children(schema))[step])
        return schema

    def paths(self, schema: dict[str, Any] | None = None, path: SchemaPath = ()) -> Iterator[SchemaPath]:
        """The paths of all fields of the spec."""
        for step, child in self.children(schema or self._definitions["JobSpec"]):
            here = (*path, step)
            yield here
            yield from self.paths(self.resolve(child), here)

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema with references inlined and `| None` removed."""
        if "$ref" in schema:
            return self._definitions[schema["$ref"].rsplit("/", 1)[-1]]
        if "anyOf" in schema and not schema.get("x-kubernetes-int-or-string"):
            options = [option for option in schema["anyOf"] if option.get("type") != "null"]
            return self.resolve(options[0]) | {"x-optional": True}
        return schema

    def children(self, schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The schemas of fields, items, values or union members, by path element."""
        if "oneOf" in schema:
            members = map(self.resolve, schema["oneOf"])
            return [(f"<{member['properties']['type']['const']}>", member) for member in members]
        if isinstance(schema.get("additionalProperties"), dict):
            return [("{}", schema["additionalProperties"])]
        return list(schema.get("properties", {}).items()) + ([("[]", schema["items"])] if "items" in schema else [])

    def model(self, schema: dict[str, Any]) -> type[Model]:
        """The model of an object schema."""
        return self.models[schema["title"]]

    def valid(
        self, rng: random.Random, schema: dict[str, Any], path: SchemaPath = (), *, allow_unsupported: bool = False
    ) -> Any:
        """A valid value in which the field at `path` is set.

        Args:
            allow_unsupported: accept values that are only rejected as `not yet supported`.
        """
        schema = self.resolve(schema)
        if "oneOf" in schema:
            members = dict(self.children(schema))
            tag = path[0] if path else rng.choice(list(members))
            return self.valid(rng, members[tag], path[1:], allow_unsupported=allow_unsupported)
        if "properties" in schema:
            accepts = (lambda errors: all(map(_is_unsupported, errors))) if allow_unsupported else operator.not_
            return self._object(rng, schema, path, accepts, allow_unsupported=allow_unsupported)
        if isinstance(schema.get("additionalProperties"), dict):
            return self._map(rng, schema)
        if schema.get("type") == "array":
            return self._list(rng, schema, path, allow_unsupported=allow_unsupported)
        return self.scalar(rng, schema)

    def violating(self, rng: random.Random, schema: dict[str, Any], rule: Rule) -> dict[str, Any]:
        """An object that violates this rule and no other."""
        rule_fields = frozenset(re.findall(r"self\.(\w+)", rule.cel))
        return self._object(
            rng,
            schema,
            (),
            lambda errors: [error["msg"] for error in errors] == [rule.message],
            rule_fields=rule_fields,
        )

    def _object(
        self,
        rng: random.Random,
        schema: dict[str, Any],
        path: SchemaPath,
        accepts: Callable[[list[Any]], bool],
        *,
        allow_unsupported: bool = False,
        rule_fields: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        required = {*schema.get("required", ()), *path[:1]}
        model = self.model(schema)
        for _ in range(MAX_DRAWS):
            density = rng.choice((0.0, 0.15, 0.4, 0.8))
            value = {
                name: self.valid(
                    rng, child, path[1:] if path[:1] == (name,) else (), allow_unsupported=allow_unsupported
                )
                for name, child in schema["properties"].items()
                if name in required or rng.random() < (0.7 if name in rule_fields else density)
            }
            if accepts(_errors(model, value)):
                return value
        raise AssertionError(f"no {model.__name__} with {'.'.join(path) or 'this violation'} in {MAX_DRAWS} draws")

    def _list(
        self, rng: random.Random, schema: dict[str, Any], path: SchemaPath, *, allow_unsupported: bool
    ) -> list[Any]:
        least = max(schema.get("minItems", 0), 1 if path else 0)
        length = max(least, min(rng.choice((least, least, 1, 2, 3)), schema["maxItems"]))
        paths = [path[1:] if index == 0 else () for index in range(length)]
        items = [self.valid(rng, schema["items"], it, allow_unsupported=allow_unsupported) for it in paths]
        keys = list(schema.get("x-kubernetes-list-map-keys", ()))
        return [
            item for index, item in enumerate(items)
            if not any(all(item[key] == other[key] for key in keys) for other in items[:index]) or not keys
        ]  # fmt: skip

    def _map(self, rng: random.Random, schema: dict[str, Any]) -> dict[str, Any]:
        keys = rng.sample(("kubernetes.io/arch", "team", "a.b/c_d", "X-1"), rng.choice((1, 2, 3)))
        return {key: self.valid(rng, schema["additionalProperties"]) for key in keys}

    def scalar(self, rng: random.Random, schema: dict[str, Any]) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            integer, text = schema["anyOf"]
            return rng.choice((self._number(rng, integer, integer=True), self._text(rng, text)))
        if schema["type"] == "boolean":
            return rng.random() < 0.5
        if schema["type"] == "string":
            return self._text(rng, schema)
        return self._number(rng, schema, integer=schema["type"] == "integer")

    def _number(self, rng: random.Random, schema: dict[str, Any], *, integer: bool) -> float:
        low, high = bounds(schema)
        if rng.random() < 0.2:
            return rng.choice([edge for edge in (schema.get("minimum"), schema.get("maximum")) if edge is not None] or
                              [(low + high) / 2])  # fmt: skip
        if integer:
            return rng.randint(int(low), int(min(high, low + rng.choice((3, 60, 1e6)))))
        value = rng.uniform(low, min(high, low + rng.choice((1, 10))))
        return value if low < value < high else (low + high) / 2

    def _text(self, rng: random.Random, schema: dict[str, Any]) -> str:
        key = f"{schema.get('pattern')}|{schema.get('minLength', 0)}|{schema['maxLength']}"
        if key not in self._pools:
            self._pools[key] = _texts(schema)
        return rng.choice(self._pools[key])

    def present(self, value: Any, schema: dict[str, Any] | None = None, path: SchemaPath = ()) -> Iterator[SchemaPath]:
        """The paths of the fields that are set in a spec."""
        schema = self.resolve(schema or self._definitions["JobSpec"])
        if "oneOf" in schema:
            tag = f"<{value['type']}>"
            yield (*path, tag)
            yield from self.present(value, dict(self.children(schema))[tag], (*path, tag))
            return
        for step, child in self.children(schema):
            for item in _children_at(value, step):
                yield (*path, step)
                yield from self.present(item, child, (*path, step))

    # Invalid jobs

    def invalid_jobs(self, rng: random.Random, path: SchemaPath) -> Iterator[InvalidJob]:
        """Jobs with one mistake at this path, one for every mistake that is possible there."""
        if path[-1].startswith("<"):
            yield from self._invalid_members(rng, path)
            return
        schema = self.schema(path)
        if "x-kubernetes-list-map-keys" in schema:  # with an item, which can be duplicated
            manifest, item_keys = self.valid_job(rng, (*path, "[]"))
            keys = item_keys[:-1]
        else:
            manifest, keys = self.valid_job(rng, path)
        for mistake, value in self._invalid_values(rng, schema, get(manifest, keys)):
            yield InvalidJob(with_value(manifest, keys, value), mistake, path, format_path(keys))
        if path[-1] not in ("[]", "{}"):
            yield from self._missing_and_unknown(path, manifest, keys)
        for rule in self.model(schema).rules if "properties" in schema else ():
            yield self._rule_violation(rng, path, schema, rule)

    def spec_rule_violations(self, rng: random.Random) -> list[InvalidJob]:
        """One job for every rule of the spec itself, which it violates."""
        return [self._rule_violation(rng, (), self.schema(()), rule) for rule in JobSpec.rules]

    def _missing_and_unknown(self, path: SchemaPath, manifest: Any, keys: FieldPath) -> Iterator[InvalidJob]:
        parent = self.schema(path[:-1])
        if path[-1] in parent.get("required", ()):
            yield InvalidJob(with_value(manifest, keys, DELETE), "missing", path, format_path(keys))
            yield InvalidJob(with_value(manifest, keys, None), "null", path, format_path(keys))
        unknown = (*keys[:-1], f"{keys[-1]}Typo")
        yield InvalidJob(with_value(manifest, unknown, 1), "unknown sibling", path, format_path(unknown))

    def _invalid_members(self, rng: random.Random, path: SchemaPath) -> Iterator[InvalidJob]:
        """A member of a union with fields of other members, with an invalid type, and violating its own rules."""
        manifest, keys = self.valid_job(rng, path)
        member, union = self.schema(path), self.schema(path[:-1])
        others = {
            name: child
            for other in union["oneOf"]
            for name, child in self.resolve(other)["properties"].items()
            if name not in member["properties"]
        }
        for name, child in others.items():
            field = (*keys, name)
            mistake = f"field {name} of another type"
            yield InvalidJob(with_value(manifest, field, self.valid(rng, child)), mistake, path, format_path(field))
        for invalid in ("NoSuchType", 1, None, DELETE):
            field = (*keys, "type")
            yield InvalidJob(with_value(manifest, field, invalid), f"type {invalid}", path, format_path(field))
        for rule in self.model(member).rules:
            yield self._rule_violation(rng, path, member, rule)

    def _rule_violation(self, rng: random.Random, path: SchemaPath, schema: dict[str, Any], rule: Rule) -> InvalidJob:
        manifest, keys = self.valid_job(rng, path)
        value = self.violating(rng, schema, rule)
        return InvalidJob(with_value(manifest, keys, value), rule.message, path, f"{format_path(keys)}.{rule.field}")

    def _invalid_values(self, rng: random.Random, schema: dict[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
        """Values that a schema rejects, each with the mistake in it."""
        for mistake, other in OTHER_TYPES.items():
            if not _has_type(schema, other):
                yield mistake, other
        if "enum" in schema:
            yield "unknown value", f"{schema['enum'][0]}x"
        if schema.get("type") in ("integer", "number"):
            low, high = edges(schema)
            yield from (("too small", low), ("too large", high))
        if schema.get("type") == "integer":
            yield "fraction", value + 0.5
        text = schema["anyOf"][1] if schema.get("x-kubernetes-int-or-string") else schema
        if "maxLength" in text:
            yield "too long", ("é" if "pattern" not in text else "a") * (text["maxLength"] + 1)
        if text.get("minLength") or (text.get("pattern") and not re.search(text["pattern"], "")):
            yield "empty", ""
        if "pattern" in text:
            yield from (("pattern", "-/ !"), ("newline", f"{value}\n"), ("pattern, not ASCII", "é"))
        if schema.get("minItems"):
            yield "empty list", []
        if "maxItems" in schema:
            yield "list too long", [copy.deepcopy(value[0] if value else None) for _ in range(schema["maxItems"] + 1)]
        if schema.get("x-kubernetes-list-map-keys") and value:
            yield "duplicate", [*value, copy.deepcopy(value[0])]
        if "maxProperties" in schema:
            yield "map too large", {f"k{index}": "v" for index in range(schema["maxProperties"] + 1)}
        if "x-kubernetes-validations" in schema and isinstance(schema.get("additionalProperties"), dict):
            yield "key", {"-not a key-": "v"}
        if "properties" in schema:
            yield "unknown field", value | {"unknownField": 1}

    def valid_job(self, rng: random.Random, path: SchemaPath) -> tuple[dict[str, Any], FieldPath]:
        """A valid job in which the field at `path` is set, and the keys of that field in the manifest."""
        allow_unsupported = ".".join(path).startswith(UNSUPPORTED)
        manifest = job(self.valid(rng, self._definitions["JobSpec"], path, allow_unsupported=allow_unsupported))
        keys: list[PathElement] = ["spec"]
        for step in path:
            if step == "[]":
                keys.append(0)
            elif step == "{}":
                keys.append(next(iter(get(manifest, tuple(keys)))))
            elif not step.startswith("<"):
                keys.append(step)
        return manifest, tuple(keys)


DELETE = object()
RULE_TEXTS = ("/tmp", "/claims/data", "17")
"""Texts that a rule depends on and that are too unlikely to be generated from the pattern."""
OTHER_TYPES = {"string": "seven", "number as string": "1", "boolean": True, "integer": 7, "list": [], "mapping": {}}


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """A job with this spec."""
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}, "spec": spec}


def get(node: Any, keys: FieldPath) -> Any:
    """The value at these keys."""
    for key in keys:
        node = node[key]
    return node


def with_value(manifest: Any, keys: FieldPath, value: Any) -> Any:
    """A copy with this value at these keys; with DELETE, without them."""
    manifest = copy.deepcopy(manifest)
    parent = get(manifest, keys[:-1])
    if value is DELETE:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = copy.deepcopy(value)
    return manifest


def bounds(schema: dict[str, Any]) -> tuple[float, float]:
    """Lower and upper bound, inclusive or exclusive."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    assert low is not None and high is not None, schema
    return low, high


def edges(schema: dict[str, Any]) -> tuple[float, float]:
    """The nearest numbers outside the bounds."""
    step = 1 if schema["type"] == "integer" else 1e-3
    low = schema["minimum"] - step if "minimum" in schema else schema["exclusiveMinimum"]
    high = schema["maximum"] + step if "maximum" in schema else schema["exclusiveMaximum"]
    return low, high


def _children_at(value: Any, step: str) -> list[Any]:
    if step == "[]":
        return list(value)
    if step == "{}":
        return list(value.values())
    return [value[step]] if step in value else []


def _has_type(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value has the type of the schema, regardless of other constraints."""
    if "oneOf" in schema:
        return isinstance(value, dict)
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, str | int) and not isinstance(value, bool)
    kinds: dict[str, Any] = {"string": str, "object": dict, "array": list, "boolean": bool}
    if schema["type"] in kinds:
        return isinstance(value, kinds[schema["type"]])
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(schema: dict[str, Any]) -> list[str]:
    """Strings that match the pattern; without a pattern, strings of minimum and maximum length."""
    longest = schema["maxLength"]
    if "pattern" not in schema:
        return ["*", "a b", "é" * longest, "😀" * longest, "y", "010", "x" * max(1, schema.get("minLength", 0))]
    pattern = schema["pattern"].removeprefix("^").removesuffix("$")
    strategy = st.from_regex(rf"\A(?:{pattern})\Z", fullmatch=True)
    strategy = strategy.filter(lambda text: schema.get("minLength", 0) <= len(text) <= longest)
    return _draw(strategy, 40) + [text for text in RULE_TEXTS if re.fullmatch(pattern, text)]


def _draw(strategy: st.SearchStrategy[str], count: int) -> list[str]:
    drawn: list[str] = []

    @hypothesis_seed(0)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
              deadline=None)  # fmt: skip
    @given(strategy)
    def collect(text: str) -> None:
        drawn.append(text)

    collect()
    return drawn


def _errors(model: type[BaseModel], value: Any) -> list[Any]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def _is_unsupported(error: Any) -> bool:
    return error["type"] == "rule" and error["msg"].startswith("not yet supported")


def _subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


assert JobSpec in _subclasses(Model)
