"""Specs of every shape the language allows, and each of them broken in one place, made by a walk over the models.

The walk follows the JSON Schema that pydantic derives from the models, not the CRD. What a schema cannot say, the
cross-field rules, is left to the models: each piece is drawn again until its model takes it.
"""

from __future__ import annotations

import copy
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

Key = str | int
Path = tuple[str, ...]
"""Where in the language: field names, `[]` for an item, `{}` for a map's value, `<SGD>` for a member of a union."""

TRIES = 4000

NOT_YET = ("entrypoint", "modules.[].adapter")
"""No job with one of these is good: they are known by name only."""


@dataclass(frozen=True)
class Broken:
    """A job broken in one place.

    Args:
        body: the job.
        how: what was done, e.g. `too large`.
        where: the place in the language.
        field: the field that is to be named, e.g. `spec.modules[0].name`.
    """

    body: dict[str, Any]
    how: str
    where: Path
    field: str


class Language:
    """The models as a tree of schemas to walk."""

    def __init__(self) -> None:
        root = FineTuneJob.model_json_schema(by_alias=True)
        self._definitions = root["$defs"]
        self.models = {model.__name__: model for model in _subclasses(Model)}
        self._pools: dict[str, list[str]] = {}

    def schema(self, path: Path) -> dict[str, Any]:
        """The schema of a place."""
        schema = self._definitions["JobSpec"]
        for step in path:
            schema = self.resolved(dict(self.children(schema))[step])
        return schema

    def places(self, schema: dict[str, Any] | None = None, path: Path = ()) -> Iterator[Path]:
        """Every place below the spec."""
        for step, child in self.children(schema or self._definitions["JobSpec"]):
            here = (*path, step)
            yield here
            yield from self.places(self.resolved(child), here)

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema without reference and without `| None`."""
        if "$ref" in schema:
            return self._definitions[schema["$ref"].rsplit("/", 1)[-1]]
        if "anyOf" in schema and not schema.get("x-kubernetes-int-or-string"):
            options = [option for option in schema["anyOf"] if option.get("type") != "null"]
            return self.resolved(options[0]) | {"x-optional": True}
        return schema

    def children(self, schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """The places right below a schema."""
        if "oneOf" in schema:
            members = map(self.resolved, schema["oneOf"])
            return [(f"<{member['properties']['type']['const']}>", member) for member in members]
        if isinstance(schema.get("additionalProperties"), dict):
            return [("{}", schema["additionalProperties"])]
        return list(schema.get("properties", {}).items()) + ([("[]", schema["items"])] if "items" in schema else [])

    def model(self, schema: dict[str, Any]) -> type[Model]:
        """The model of an object's schema."""
        return self.models[schema["title"]]

    def good(self, rng: random.Random, schema: dict[str, Any], want: Path = (), *, known: bool = False) -> Any:
        """A value that the models take and that has something at `want`.

        Args:
            known: what is known by name only (`not yet supported`) will do as well.
        """
        schema = self.resolved(schema)
        if "oneOf" in schema:
            members = dict(self.children(schema))
            return self.good(rng, members[want[0] if want else rng.choice(list(members))], want[1:], known=known)
        if "properties" in schema:
            takes = (lambda errors: all(map(_not_yet, errors))) if known else (lambda errors: not errors)
            return self._object(rng, schema, want, takes, known=known)
        if isinstance(schema.get("additionalProperties"), dict):
            return self._map(rng, schema)
        if schema.get("type") == "array":
            return self._list(rng, schema, want, known=known)
        return self.scalar(rng, schema)

    def violating(self, rng: random.Random, schema: dict[str, Any], rule: Rule) -> dict[str, Any]:
        """An object that disobeys one rule and nothing else before it."""
        concerned = frozenset(re.findall(r"self\.(\w+)", rule.cel))
        return self._object(
            rng, schema, (), lambda errors: [error["msg"] for error in errors] == [rule.message], concerned=concerned
        )

    def _object(
        self,
        rng: random.Random,
        schema: dict[str, Any],
        want: Path,
        takes: Callable[[list[Any]], bool],
        *,
        known: bool = False,
        concerned: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        required = {*schema.get("required", ()), *want[:1]}
        model = self.model(schema)
        for _ in range(TRIES):
            density = rng.choice((0.0, 0.15, 0.4, 0.8))
            found = {
                name: self.good(rng, child, want[1:] if want[:1] == (name,) else (), known=known)
                for name, child in schema["properties"].items()
                if name in required or rng.random() < (0.7 if name in concerned else density)
            }
            if takes(_errors(model, found)):
                return found
        raise AssertionError(f"no {model.__name__} with {'.'.join(want) or 'that rule broken'} in {TRIES} tries")

    def _list(self, rng: random.Random, schema: dict[str, Any], want: Path, *, known: bool) -> list[Any]:
        least = max(schema.get("minItems", 0), 1 if want else 0)
        length = min(rng.choice((least, least, 1, 2, 3)), schema["maxItems"])
        wants = [want[1:], *[()] * max(least - 1, length - 1, 0)][: max(least, length)]
        items = [self.good(rng, schema["items"], wanted, known=known) for wanted in wants]
        keys = list(schema.get("x-kubernetes-list-map-keys", ()))
        return [
            item for n, item in enumerate(items)
            if not any(all(item[key] == other[key] for key in keys) for other in items[:n]) or not keys
        ]  # fmt: skip

    def _map(self, rng: random.Random, schema: dict[str, Any]) -> dict[str, Any]:
        keys = rng.sample(("kubernetes.io/arch", "team", "a.b/c_d", "X-1"), rng.choice((1, 2, 3)))
        return {key: self.good(rng, schema["additionalProperties"]) for key in keys}

    def scalar(self, rng: random.Random, schema: dict[str, Any]) -> Any:
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            whole, text = schema["anyOf"]
            return rng.choice((self._number(rng, whole, whole=True), self._text(rng, text)))
        if schema["type"] == "boolean":
            return rng.random() < 0.5
        if schema["type"] == "string":
            return self._text(rng, schema)
        return self._number(rng, schema, whole=schema["type"] == "integer")

    def _number(self, rng: random.Random, schema: dict[str, Any], *, whole: bool) -> float:
        low, high = bounds(schema)
        if rng.random() < 0.2:
            return rng.choice([edge for edge in (schema.get("minimum"), schema.get("maximum")) if edge is not None] or
                              [(low + high) / 2])  # fmt: skip
        if whole:
            return rng.randint(int(low), int(min(high, low + rng.choice((3, 60, 1e6)))))
        value = rng.uniform(low, min(high, low + rng.choice((1, 10))))
        return value if low < value < high else (low + high) / 2

    def _text(self, rng: random.Random, schema: dict[str, Any]) -> str:
        key = f"{schema.get('pattern')}|{schema.get('minLength', 0)}|{schema['maxLength']}"
        if key not in self._pools:
            self._pools[key] = _texts(schema)
        return rng.choice(self._pools[key])

    def present(self, value: Any, schema: dict[str, Any] | None = None, path: Path = ()) -> Iterator[Path]:
        """The places of the language at which a spec has something."""
        schema = self.resolved(schema or self._definitions["JobSpec"])
        if "oneOf" in schema:
            tag = f"<{value['type']}>"
            yield (*path, tag)
            yield from self.present(value, dict(self.children(schema))[tag], (*path, tag))
            return
        for step, child in self.children(schema):
            for inside in _inside(value, step):
                yield (*path, step)
                yield from self.present(inside, child, (*path, step))

    # Breaking

    def broken(self, rng: random.Random, path: Path) -> Iterator[Broken]:
        """A good job, broken at a place in every way that applies there."""
        if path[-1].startswith("<"):
            yield from self._broken_member(rng, path)
            return
        body, keys = self.placed(rng, path)
        schema = self.schema(path)
        for how, value in self._wrong(rng, schema, at(body, keys)):
            yield Broken(replaced(body, keys, value), how, path, dotted(keys))
        if path[-1] not in ("[]", "{}"):
            yield from self._broken_presence(rng, path, body, keys)
        for rule in self.model(schema).rules if "properties" in schema else ():
            yield self._broken_rule(rng, path, schema, rule)

    def broken_at_the_top(self, rng: random.Random) -> list[Broken]:
        """A good job whose spec as a whole disobeys each of its rules."""
        return [self._broken_rule(rng, (), self.schema(()), rule) for rule in JobSpec.rules]

    def _broken_presence(self, rng: random.Random, path: Path, body: Any, keys: tuple[Key, ...]) -> Iterator[Broken]:
        parent = self.schema(path[:-1])
        if path[-1] in parent.get("required", ()):
            yield Broken(replaced(body, keys, DELETE), "missing", path, dotted(keys))
            yield Broken(replaced(body, keys, None), "null", path, dotted(keys))
        stranger = (*keys[:-1], f"{keys[-1]}Typo")
        yield Broken(replaced(body, stranger, 1), "unknown neighbour", path, dotted(stranger))

    def _broken_member(self, rng: random.Random, path: Path) -> Iterator[Broken]:
        """A member of a union: fields of the others, and its own rules."""
        body, keys = self.placed(rng, path)
        member, union = self.schema(path), self.schema(path[:-1])
        foreign = {
            name: child
            for other in union["oneOf"]
            for name, child in self.resolved(other)["properties"].items()
            if name not in member["properties"]
        }
        for name, child in foreign.items():
            here = (*keys, name)
            yield Broken(
                replaced(body, here, self.good(rng, child)), f"field {name} of another type", path, dotted(here)
            )
        for wrong in ("NoSuchType", 1, None, DELETE):
            here = (*keys, "type")
            yield Broken(replaced(body, here, wrong), f"type {wrong}", path, dotted(here))
        for rule in self.model(member).rules:
            yield self._broken_rule(rng, path, member, rule)

    def _broken_rule(self, rng: random.Random, path: Path, schema: dict[str, Any], rule: Rule) -> Broken:
        body, keys = self.placed(rng, path)
        culprit = f"{dotted(keys)}.{rule.field}"
        return Broken(replaced(body, keys, self.violating(rng, schema, rule)), rule.message, path, culprit)

    def _wrong(self, rng: random.Random, schema: dict[str, Any], value: Any) -> Iterator[tuple[str, Any]]:
        """Values that a schema does not take, by what is wrong with them."""
        for how, other in OTHER_TYPES.items():
            if not _is_a(schema, other):
                yield how, other
        if "enum" in schema:
            yield "unknown value", f"{schema['enum'][0]}x"
        if schema.get("type") in ("integer", "number"):
            low, high = edges(schema)
            yield from ((how, edge) for how, edge in (("too small", low), ("too large", high)) if edge is not None)
        if schema.get("type") == "integer":
            yield "fraction", value + 0.5
        text = schema["anyOf"][1] if schema.get("x-kubernetes-int-or-string") else schema
        if "maxLength" in text:
            yield "too long", ("é" if "pattern" not in text else "a") * (text["maxLength"] + 1)
        if text.get("minLength") or (text.get("pattern") and not re.search(text["pattern"], "")):
            yield "empty", ""
        if "pattern" in text:
            yield from ((how, wrong) for how, wrong in (("pattern", "-/ !"), ("newline", f"{value}\n"),
                                                         ("pattern, not ASCII", "é")))  # fmt: skip
        if schema.get("minItems"):
            yield "empty list", []
        if "maxItems" in schema:
            yield "list too long", [copy.deepcopy(value[0] if value else None) for _ in range(schema["maxItems"] + 1)]
        if schema.get("x-kubernetes-list-map-keys") and value:
            yield "duplicate", [*value, copy.deepcopy(value[0])]
        if "maxProperties" in schema:
            yield "map too large", {f"k{n}": "v" for n in range(schema["maxProperties"] + 1)}
        if "x-kubernetes-validations" in schema and isinstance(schema.get("additionalProperties"), dict):
            yield "key", {"-not a key-": "v"}
        if "properties" in schema:
            yield "unknown field", value | {"unknownField": 1}

    def placed(self, rng: random.Random, path: Path) -> tuple[dict[str, Any], tuple[Key, ...]]:
        """A job that has something at a place, and the keys that lead there."""
        known = ".".join(path).startswith(NOT_YET)
        body = job(self.good(rng, self._definitions["JobSpec"], path, known=known))
        keys: list[Key] = ["spec"]
        for step in path:
            if step == "[]":
                keys.append(0)
            elif step == "{}":
                keys.append(next(iter(at(body, tuple(keys)))))
            elif not step.startswith("<"):
                keys.append(step)
        return body, tuple(keys)


DELETE = object()
BY_HAND = ("/tmp", "/claims/data", "17")
"""Texts that matter to a rule, and that chance would not find."""
OTHER_TYPES = {"text": "seven", "number as text": "1", "boolean": True, "whole number": 7, "list": [], "mapping": {}}


def job(spec: dict[str, Any]) -> dict[str, Any]:
    """A job with this spec."""
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "job"}, "spec": spec}


def at(node: Any, keys: tuple[Key, ...]) -> Any:
    """What stands at the end of these keys."""
    for key in keys:
        node = node[key]
    return node


def replaced(body: Any, keys: tuple[Key, ...], value: Any) -> Any:
    """A copy with another value at the end of these keys, or none."""
    body = copy.deepcopy(body)
    parent = at(body, keys[:-1])
    if value is DELETE:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = copy.deepcopy(value)
    return body


def dotted(keys: tuple[Key, ...]) -> str:
    """`spec.modules[0].name`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def bounds(schema: dict[str, Any]) -> tuple[float, float]:
    """The lowest and highest number, whether or not they are allowed themselves."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    assert low is not None and high is not None, schema
    return low, high


def edges(schema: dict[str, Any]) -> tuple[float, float]:
    """The numbers just outside the bounds."""
    step = 1 if schema["type"] == "integer" else 1e-3
    low = schema["minimum"] - step if "minimum" in schema else schema["exclusiveMinimum"]
    high = schema["maximum"] + step if "maximum" in schema else schema["exclusiveMaximum"]
    return low, high


def _inside(value: Any, step: str) -> list[Any]:
    if step == "[]":
        return list(value)
    if step == "{}":
        return list(value.values())
    return [value[step]] if step in value else []


def _is_a(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is of the type that a schema asks for, be it right or not."""
    if "oneOf" in schema:
        return isinstance(value, dict)
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, str | int) and not isinstance(value, bool)
    kinds: dict[str, Any] = {"string": str, "object": dict, "array": list, "boolean": bool}
    if schema["type"] in kinds:
        return isinstance(value, kinds[schema["type"]])
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(schema: dict[str, Any]) -> list[str]:
    """Texts of a pattern, and of the greatest and smallest length where there is none."""
    longest = schema["maxLength"]
    if "pattern" not in schema:
        return ["*", "a b", "é" * longest, "😀" * longest, "y", "010", "x" * max(1, schema.get("minLength", 0))]
    pattern = schema["pattern"].removeprefix("^").removesuffix("$")
    strategy = st.from_regex(rf"\A(?:{pattern})\Z", fullmatch=True)
    fitting = strategy.filter(lambda text: schema.get("minLength", 0) <= len(text) <= longest)
    return _drawn(fitting, 40) + [text for text in BY_HAND if re.fullmatch(pattern, text)]


def _drawn(strategy: st.SearchStrategy[str], count: int) -> list[str]:
    found: list[str] = []

    @hypothesis_seed(0)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
              deadline=None)  # fmt: skip
    @given(strategy)
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return found


def _errors(model: type[BaseModel], value: Any) -> list[Any]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def _not_yet(error: Any) -> bool:
    return error["type"] == "rule" and error["msg"].startswith("not yet supported")


def _subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


assert JobSpec in _subclasses(Model)
