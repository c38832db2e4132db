"""What every part of the language shares: strictness, camelCase, and rules.

A cross-field rule is written once, here called `Rule`, with its two readings side by side: the CEL that the API
server enforces at `kubectl apply`, and the Python that `finetune validate`, the operator and the trainer enforce.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True)
class Rule:
    """One cross-field rule of the language.

    Args:
        field: the field that is to blame, relative to the model (camelCase, dotted).
        message: one sentence that says what was expected.
        cel: the rule as the API server evaluates it, about `self`.
        holds: the same rule about the parsed model.
    """

    field: str
    message: str
    cel: str
    holds: Callable[[Any], bool]

    def schema(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message, "fieldPath": f".{self.field}"}


class Model(BaseModel):
    """A frozen, strict piece of the manifest: camelCase outside, snake_case inside, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return without_nulls(value)

    @model_validator(mode="after")
    def _obey_rules(self) -> Any:
        for rule in self.rules:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field": rule.field})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.schema() for rule in cls.rules]
        return schema

    def manifest(self) -> dict[str, Any]:
        """The model as it is written in a manifest: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def without_nulls(value: Any) -> Any:
    """A mapping without its nulls: to the API server a field that is null is a field that is left out."""
    if isinstance(value, dict) and None in value.values():
        return {key: item for key, item in value.items() if item is not None}
    return value


@dataclass(frozen=True)
class UniqueBy:
    """Annotates a list whose items are told apart by one of their fields, as `list-type: map` on the API server."""

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(core) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}

    def _check(self, items: list[Any]) -> list[Any]:
        keys = [getattr(item, to_snake(self.key)) for item in items]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                message = f"{key!r} is there already; each {self.key} may stand once"
                raise PydanticCustomError(
                    "rule", "{message}", {"message": message, "field": f"[{position}].{self.key}"}
                )
        return items


@dataclass(frozen=True)
class KeysMatch:
    """Annotates a map whose keys have a form of their own: a structural schema speaks of values only."""

    pattern: str
    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        rule = {"rule": f"self.all(key, key.matches(r'{self.pattern}'))", "message": f"each key must be {self.what}"}
        return handler(core) | {"x-kubernetes-validations": [rule]}

    def _check(self, mapping: dict[str, Any]) -> dict[str, Any]:
        for key in mapping:
            if not re.search(self.pattern.replace("$", r"\Z"), key):
                message = f"{key!r}: each key must be {self.what}"
                raise PydanticCustomError("rule", "{message}", {"message": message, "field": ""})
        return mapping


@dataclass(frozen=True)
class OneForm:
    """Annotates a union of plain values that people think of as one form: what fits none of it is one mistake."""

    what: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("form", "{what}", {"what": self.what}) from None


def not_yet_supported(field: str, what: str, cel: str, holds: Callable[[Any], bool]) -> Rule:
    """A part of the language that nobody does yet: known by name, so that it is refused and never ignored."""
    return Rule(field=field, message=f"not yet supported: {what}", cel=cel, holds=holds)


def at_most_one(*names: str) -> Callable[[Any], bool]:
    """A rule's Python reading: no two of these snake_case fields are set."""
    return lambda model: sum(getattr(model, name) is not None for name in names) <= 1


def exactly_one(*names: str) -> Callable[[Any], bool]:
    """A rule's Python reading: one and only one of these snake_case fields is set."""
    return lambda model: sum(getattr(model, name) is not None for name in names) == 1


def cel_count(*names: str) -> str:
    """CEL for the number of these camelCase fields that are set."""
    return "(" + " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names) + ")"


DNS_1035_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
MODULE_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9_]*[A-Za-z0-9])?$"
EXTENDED_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei|[eE][+]?[0-9]{1,2})?$"

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
QualifiedName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=QUALIFIED_NAME)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]
Labels = Annotated[
    dict[str, LabelValue],
    Field(max_length=32),
    KeysMatch(QUALIFIED_NAME, "a label's name, e.g. kubernetes.io/arch"),
    BeforeValidator(without_nulls),
]
ShortString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
NonNegative = Annotated[float, Field(ge=0, le=1_000_000)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=4_294_967_295)]
Quantity = Annotated[
    Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
    | Annotated[
        str,
        StringConstraints(min_length=1, max_length=32, pattern=QUANTITY),
    ],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
    OneForm("a quantity, e.g. 8, 500m or 32Gi (a fraction in quotes: '0.5')"),
]
