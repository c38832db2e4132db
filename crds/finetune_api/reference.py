"""Generates docs/reference.md, the API reference, from the models and the CRD; `make generate` writes it.

Types, bounds and rules come from the CRD. Descriptions and defaults come from the models: in the CRD, the descriptions
hold the defaults, and a union is one object.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_api.crd import job_crd
from finetune_api.descriptions import Schema, explicit_default, first_paragraph, format_default
from finetune_api.job import ALWAYS_MUTABLE, FineTuneJob, JobSpec
from finetune_api.metrics import EVALUATION_METRICS
from finetune_api.status import JobStatus
from finetune_api.validation_errors import describe_pattern

INTRODUCTION = """\
# FineTuneJob API reference (`finetune.dev/v1alpha1`)

<!-- Generated from finetune_api by `make generate`; edit the models instead. -->

All fields of a FineTuneJob, with one section per object. Unknown fields are rejected. Required fields are **bold**.
A `null` value is the same as an unset field. `[]` after a name stands for the items of a list.

`kubectl apply` and `finetune validate` accept the same manifests, and report every mistake with the path of its field.

"""
MUTABILITY = f"""\
## Mutability

`{"`, `".join(f"spec.{name}" for name in ALWAYS_MUTABLE)}` can be changed at any time. All other
fields of `.spec` are mutable until `.status.attempt` is 1 or more, so a typo can be corrected in place. After that,
changes are rejected with `... is immutable`. `metadata.name` cannot be changed.

"""

METRICS_INTRODUCTION = """\
## Metrics

The metrics that `spec.evaluation.metric` may name. On the test set, their names start with `test/` instead of `eval/`.
A value that is not finite is reported as such, is `null` in JSON, and is never the best one.
"""

CONTENTS_DEPTH = 3
"""Sections below this depth are not listed in the table of contents."""


def reference() -> str:
    """The API reference in Markdown."""
    schema = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    models = FineTuneJob.model_json_schema(by_alias=True)["$defs"]
    sections = [
        *_sections("spec", schema["spec"], models[JobSpec.__name__], models),
        *_sections("status", schema["status"], models[JobStatus.__name__], models),
    ]
    contents = "".join(f"- [`{path}`](#{_anchor(path)})\n" for path, _ in sections if path.count(".") < CONTENTS_DEPTH)
    metadata = _metadata_section(schema["metadata"]["properties"]["name"])
    body = "".join(text for _, text in sections)
    contents += "- [Metrics](#metrics)\n"
    return INTRODUCTION + contents + "\n" + MUTABILITY + metadata + body + _metrics_section()


def _metrics_section() -> str:
    rows = "".join(
        f"| `{name}` | {metric.direction} | {', '.join(metric.tasks)} | {_cell(metric.description)}. |\n"
        for name, metric in EVALUATION_METRICS.items()
    )
    return f"{METRICS_INTRODUCTION}\n| Metric | Direction | Tasks | Description |\n|---|---|---|---|\n{rows}"


def _metadata_section(name: Schema) -> str:
    meaning = "Name of the job. The names of its Jobs, ConfigMaps and pods start with it."
    return f"## metadata\n\n{_table([('**`metadata.name`**', _type(name), '', meaning)])}\n"


def _sections(path: str, schema: Schema, model: Schema, models: dict[str, Schema]) -> Iterator[tuple[str, str]]:
    """The path and the text of the section of an object, and of every object below it."""
    yield path, _object_section(path, schema, model, models)
    for name, child in schema["properties"].items():
        child_path, child_schema = _item(f"{path}.{name}", child)
        if "properties" in child_schema:
            child_model = _resolve(model["properties"][name], models)
            if "oneOf" in child_model:
                yield child_path, _union_section(child_path, child_schema, child_model, models)
            else:
                yield from _sections(child_path, child_schema, child_model, models)


def _item(path: str, schema: Schema) -> tuple[str, Schema]:
    return (f"{path}[]", schema["items"]) if "items" in schema else (path, schema)


def _object_section(path: str, schema: Schema, model: Schema, models: dict[str, Schema]) -> str:
    rows = [_row(path, name, schema["properties"][name], model, models) for name in schema["properties"]]
    return f"## {path}\n\n{_description(model)}\n\n{_table(rows)}{_rules(schema)}\n"


def _union_section(path: str, schema: Schema, union: Schema, models: dict[str, Schema]) -> str:
    """A section with a table of the types, and a subsection with the fields of each type."""
    members = {_type_of(member): member for member in (_resolve(option, models) for option in union["oneOf"])}
    type_row = (f"**`{path}.type`**", _type(schema["properties"]["type"]), "", "Type, see below.")
    summaries = "".join(
        f"| `{tag}` | {_cell(first_paragraph(member['description']))} |\n" for tag, member in members.items()
    )
    text = f"## {path}\n\n{_table([type_row])}\n| Type | Description |\n|---|---|\n{summaries}\n"
    for tag, member in members.items():
        fields = [name for name in member["properties"] if name != "type"]
        rows = [_row(path, name, schema["properties"][name], member, models) for name in fields]
        text += f"### {path}: {tag}\n\n{_description(member)}\n\n{_table(rows)}{_rules(member)}\n"
    return text


def _row(path: str, name: str, schema: Schema, model: Schema, models: dict[str, Schema]) -> tuple[str, ...]:
    field = f"`{path}.{name}`"
    if name in model.get("required", ()):
        field = f"**{field}**"
    source = model["properties"][name]
    child_path, child_schema = _item(f"{path}.{name}", schema)
    # pydantic omits the description of a field that equals the docstring of its model.
    meaning = _description(_resolve(source, models) | source)
    if "properties" in child_schema:
        meaning += f" See [`{child_path}`](#{_anchor(child_path)})."
    return field, _type(schema), _default(source, models), _cell(meaning)


def _description(schema: Schema) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in schema["description"].split("\n\n"))


def _default(source: Schema, models: dict[str, Schema]) -> str:
    properties = _resolve(source, models).get("properties", {})
    default = explicit_default({"default": source.get("default"), "properties": properties})
    return "" if default is None else f"`{format_default(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(rows: list[tuple[str, ...]]) -> str:
    return "| Field | Type | Default | Description |\n|---|---|---|---|\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in rows
    )


def _rules(schema: Schema) -> str:
    """The cross-field rules; `not yet supported` rules come last."""
    messages = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    messages = sorted(dict.fromkeys(messages), key=lambda message: message.startswith("not yet"))
    return "\nValidation rules:\n\n" + "".join(f"- {message}\n" for message in messages) if messages else ""


def _type(schema: Schema) -> str:
    """The type of a field with its constraints."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity, e.g. `8`, `500m` or `32Gi`"
    kind = schema["type"]
    if kind == "array":
        limit = f"{schema['minItems']} to" if "minItems" in schema else "at most"
        return f"list of {_type(schema['items'])}; {limit} {schema['maxItems']} items"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}; at most {schema['maxProperties']} entries"
    if kind in ("integer", "number"):
        return f"{kind}{_interval(schema)}"
    return _string_type(schema) if kind == "string" else str(kind)


def _string_type(schema: Schema) -> str:
    pattern = schema.get("pattern", "")
    form = describe_pattern(pattern) or schema.get("format", "")
    if pattern and form == pattern:
        form = _cell(f"`{pattern}`")
    length = f"at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    return ", ".join(filter(None, ("string", form, length)))


def _interval(schema: Schema) -> str:
    if "minimum" not in schema and "maximum" not in schema:
        return ""
    low = "(" if schema.get("exclusiveMinimum") else "["
    high = ")" if schema.get("exclusiveMaximum") else "]"
    start, end = (_number(schema[edge]) if edge in schema else "…" for edge in ("minimum", "maximum"))
    return f" in {low}{start}, {end}{high}"


def _number(value: float) -> str:
    return f"{value:,}".removesuffix(".0")


def _resolve(schema: Schema, models: dict[str, Schema]) -> Schema:
    """The object or union behind references, lists and `| None`."""
    if "$ref" in schema:
        return _resolve(models[schema["$ref"].rsplit("/", 1)[-1]], models)
    if "anyOf" in schema:
        return _resolve(next(option for option in schema["anyOf"] if option.get("type") != "null"), models)
    return _resolve(schema["items"], models) if "items" in schema else schema


def _type_of(member: Schema) -> str:
    return str(member["properties"]["type"]["const"])


def _anchor(path: str) -> str:
    """The anchor that GitHub generates for a heading."""
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "-_")


def main() -> None:
    """Write the reference to the file named on the command line."""
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
