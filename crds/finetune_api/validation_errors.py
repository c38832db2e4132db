"""Turns pydantic's errors into messages about a manifest: its field, the value, what was expected, the nearest choice.

pydantic reports Python types and the internals of unions, and never suggests anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from finetune_api.base import (
    DNS_1035_LABEL,
    DNS_SUBDOMAIN,
    EXTENDED_RESOURCE,
    LABEL_VALUE,
    MODULE_NAME,
    QUALIFIED_NAME,
)
from finetune_api.evaluation import EVAL_METRIC
from finetune_api.field_paths import field_names, format_path, parse_path, resolve_location
from finetune_api.foreign_fields import find_foreign_field
from finetune_api.job import ENTRYPOINT
from finetune_api.kubectl_yaml import FieldPath, PathElement, truncate
from finetune_api.runtime import CONFIG_KEY, ENV_NAME, MOUNT_PATH
from finetune_api.suggestions import closest_match, normalize


@dataclass(frozen=True)
class FieldError:
    """One error about one field.

    Args:
        path: the field.
        message: what was found and what was expected.
        suggestion: the nearest valid choice.
    """

    path: FieldPath
    message: str
    suggestion: str | None = None


def describe_error(details: ErrorDetails) -> FieldError:
    """The error as a message about the manifest."""
    path, owner = resolve_location(details["loc"])
    message, suggestion = _describe(details, path, owner)
    if details["type"].startswith("union_tag"):
        path = [*path, "type"]
    if details["type"] == "rule":
        path = [*path, *parse_path(details["ctx"]["field"])]
    return FieldError(tuple(path), message, suggestion)


def _describe(details: ErrorDetails, path: list[PathElement], owner: type[BaseModel] | None) -> tuple[str, str | None]:
    """Message and nearest choice."""
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return _unknown_field(path, field_names(owner) if owner else [])
    if kind == "missing":
        return "is required", None
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        found = value.get("type") if kind == "union_tag_invalid" and isinstance(value, dict) else value
        return f"{format_value(found)} is not one of {', '.join(choices)}", closest_match(str(found), choices)
    if kind == "union_tag_not_found":
        return "type is required", None
    if kind == "rule":
        return str(context["message"]), None
    if kind == "format":
        return f"{format_value(value)} is not {context['expected']}", None
    if kind == "string_pattern_mismatch":
        form = describe_pattern(str(context["pattern"]))
        return f"{format_value(value)} is not {'' if form.startswith('a ') else 'of the form '}{form}", None
    return f"{format_value(value)}: {_expected(details)}", None


def _unknown_field(path: Sequence[PathElement], choices: Sequence[str]) -> tuple[str, str | None]:
    """Where another project's field is here, or else the fields there are and the one that may have been meant."""
    name = str(path[-1])
    suggestion = closest_match(name, choices)
    is_other_spelling = suggestion is not None and normalize(suggestion) == normalize(name)
    foreign = find_foreign_field(name)
    if foreign and not is_other_spelling and _schema_path(path) not in foreign.fields:
        return f"unknown field; {foreign}", None
    return f"unknown field; expected one of {', '.join(choices)}", suggestion


def _schema_path(path: Sequence[PathElement]) -> str:
    """`modules[].optimizer.momentum` for `spec.modules[1].optimizer.momentum`."""
    return re.sub(r"\[\d+\]", "[]", format_path(path)).removeprefix("spec.")


def _expected(details: ErrorDetails) -> str:
    """What was expected, as YAML types instead of Python's."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        too_short = kind.endswith("short")
        count = context["min_length"] if too_short else context["max_length"]
        unit = "character" if kind.startswith("string") else "item"
        return f"expected at {'least' if too_short else 'most'} {count} {unit}{'' if count == 1 else 's'}"
    message = details["msg"].replace("Input should be", "expected").replace("Input", "value")
    return _EXPECTED.get(kind, f"{message[0].lower()}{message[1:]}")


_EXPECTED = {
    "bool_type": "expected true or false",
    "dict_type": "expected a mapping",
    "finite_number": "expected a finite number",
    "float_type": "expected a number",
    "int_from_float": "expected an integer",
    "int_type": "expected an integer",
    "list_type": "expected a list",
    "model_attributes_type": "expected a mapping",
    "model_type": "expected a mapping",
    "string_type": "expected a string",
}

_PATTERNS = {
    DNS_1035_LABEL: "a name of lower-case letters, digits and '-' that starts with a letter",
    DNS_SUBDOMAIN: "a name of lower-case letters, digits, '-' and '.'",
    QUALIFIED_NAME: "a label key, e.g. kubernetes.io/arch",
    LABEL_VALUE: "a label value of letters, digits, '-', '_' and '.'",
    MODULE_NAME: "a name of letters, digits, '-' and '_'",
    EXTENDED_RESOURCE: "a resource name with its domain, e.g. nvidia.com/gpu",
    CONFIG_KEY: "a key of letters, digits, '-', '_' and '.'",
    ENTRYPOINT: "package.module:factory",
    ENV_NAME: "a variable name of letters, digits, '_', '-' and '.' that does not start with a digit",
    EVAL_METRIC: "an evaluation metric, e.g. eval/loss",
    MOUNT_PATH: "an absolute path without hidden folders, e.g. /data/images",
}


def describe_pattern(pattern: str) -> str:
    """What a string has to look like; the pattern itself where it has no description."""
    if "hf://" in pattern:
        return "hf://org/repo or pvc://claim/path"
    if "pvc://" in pattern:
        return "pvc://claim/path"
    return _PATTERNS.get(pattern, pattern)


def format_value(value: object) -> str:
    """A value in a message, shortened if it is long."""
    return truncate(repr(value))
