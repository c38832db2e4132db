"""Base model of the API: strict parsing, camelCase aliases, cross-field rules and shared field types.

A cross-field rule is one `Rule` with two equivalent conditions: the CEL expression that the API server evaluates on
`kubectl apply`, and the Python predicate that `finetune validate`, the operator and the trainer evaluate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
    """One cross-field validation rule of a model.

    Args:
        field: path of the field that the error is reported for, relative to the model (camelCase, dotted).
        message: what was expected, without a trailing period.
        cel: the condition as a CEL expression over `self`.
        is_valid: the same condition over the parsed model.
    """

    field: str
    message: str
    cel: str
    is_valid: Callable[[Any], bool]

    def to_schema(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message, "fieldPath": f".{self.field}"}


class Model(BaseModel):
    """Frozen, strict base model: camelCase in manifests, snake_case in Python, unknown fields are rejected."""

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
    def _check_rules(self) -> Any:
        for rule in self.rules:
            if not rule.is_valid(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field": rule.field})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.to_schema() for rule in cls.rules]
        return schema

    def manifest(self) -> dict[str, Any]:
        """The model as it is written in a manifest: camelCase keys, unset fields omitted."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def without_nulls(value: Any) -> Any:
    """A mapping without its null values: the API server treats a null field as unset."""
    if isinstance(value, dict) and None in value.values():
        return {key: item for key, item in value.items() if item is not None}
    return value


@dataclass(frozen=True)
class ListMapKey:
    """Annotates a list whose items are unique by one field (`list-type: map` with one `list-map-key`)."""

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(core) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}

    def _check(self, items: list[Any]) -> list[Any]:
        keys = [getattr(item, to_snake(self.key)) for item in items]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                message = f"duplicate value {key!r}: each {self.key} must be unique"
                raise PydanticCustomError("rule", "{message}", {"message": message, "field": f"[{index}].{self.key}"})
        return items


@dataclass(frozen=True)
class KeyPattern:
    """Annotates a map whose keys must match a pattern: a structural schema constrains values only, so this is CEL."""

    pattern: str
    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        rule = f"self.all(key, key.matches(r'{self.pattern}'))"
        message = f"each key must be {self.expected}"
        return handler(core) | {"x-kubernetes-validations": [{"rule": rule, "message": message}]}

    def _check(self, mapping: dict[str, Any]) -> dict[str, Any]:
        for key in mapping:
            if not re.search(self.pattern.replace("$", r"\Z"), key):
                message = f"{key!r}: each key must be {self.expected}"
                raise PydanticCustomError("rule", "{message}", {"message": message, "field": ""})
        return mapping


@dataclass(frozen=True)
class ExpectedFormat:
    """Annotates a union of scalars: reports one error with the expected format instead of one error per member."""

    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("format", "{expected}", {"expected": self.expected}) from None


def not_yet_supported(field: str, feature: str, cel: str, is_valid: Callable[[Any], bool]) -> Rule:
    """A rule that rejects a field or value of the API that is not implemented, so that it is never ignored."""
    return Rule(field=field, message=f"not yet supported: {feature}", cel=cel, is_valid=is_valid)


def at_most_one_of(*fields: str, report: str | None = None, reason: str = "") -> Rule:
    """A rule that these camelCase fields are mutually exclusive.

    Args:
        report: the field that the error is reported for; the first one by default.
        reason: why they are, appended to the message.
    """
    return _count_rule(fields, report, reason, allow_none=True)


def exactly_one_of(*fields: str) -> Rule:
    """A rule that exactly one of these camelCase fields is set; the error is reported for the first."""
    return _count_rule(fields, allow_none=False)


def _count_rule(fields: Sequence[str], report: str | None = None, reason: str = "", *, allow_none: bool) -> Rule:
    names = [to_snake(field) for field in fields]
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)

    def is_valid(model: Any) -> bool:
        set_fields = sum(getattr(model, name) is not None for name in names)
        return set_fields == 1 or (allow_none and set_fields == 0)

    quantifier, comparison = ("at most", "<=") if allow_none else ("exactly", "==")
    return Rule(
        field=report or fields[0],
        message=f"set {quantifier} one of {', '.join(fields[:-1])} and {fields[-1]}{reason and f': {reason}'}",
        cel=f"{count} {comparison} 1",
        is_valid=is_valid,
    )


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
    KeyPattern(QUALIFIED_NAME, "a label key, e.g. kubernetes.io/arch"),
    BeforeValidator(without_nulls),
]
ShortString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]
Epochs = Annotated[float, Field(gt=0, le=1_000_000)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1_000_000)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
OpenUnitInterval = Annotated[float, Field(gt=0, lt=1)]
HalfOpenUnitInterval = Annotated[float, Field(ge=0, lt=1)]
MaxNorm = Annotated[float, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=4_294_967_295)]
Quantity = Annotated[
    Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
    | Annotated[
        str,
        StringConstraints(min_length=1, max_length=32, pattern=QUANTITY),
    ],
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
    ExpectedFormat("a quantity, e.g. 8, 500m or 32Gi (quote decimals: '0.5')"),
]
