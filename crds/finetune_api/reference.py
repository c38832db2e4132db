"""Generates docs/reference.md, the language field by field, from the models and the CRD; `make generate` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.crd import Schema, job_crd
from finetune_api.job import ALWAYS_MUTABLE, FineTuneJob, JobSpec
from finetune_api.status import JobStatus
from finetune_api.validation_errors import describe_pattern

HEAD = """\
# Reference: FineTuneJob (`finetune.dev/v1alpha1`)

<!-- Generated from finetune_api by `make generate`; edit the models instead. -->

Every field, one section per part of a job. A field that is not listed is refused. **Bold** fields are required. `null`
means the same as leaving a field out. `[]` after a name is a list's item, `{}` a map's value.

`kubectl apply` and `finetune validate` refuse the same manifests, with one message per mistake that names the field.

"""
MUTABILITY = f"""\
## When a field may change

`{"`, `".join(f"spec.{name}" for name in ALWAYS_MUTABLE)}` may change at any time. Every other field of `.spec`
may change until `.status.attempt` is 1 or more, so a typo is mended in place; after that a change is refused as
`... is immutable`. `metadata.name` never changes.

"""

CONTENTS_DEPTH = 3
"""Sections deeper than this are found from the section above them."""


def reference() -> str:
    """The page."""
    schema = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    pydantic = FineTuneJob.model_json_schema(by_alias=True)["$defs"]
    name = schema["metadata"]["properties"]["name"]
    parts = list(_parts("spec", schema["spec"], JobSpec.__name__, pydantic))
    parts += list(_parts("status", schema["status"], JobStatus.__name__, pydantic))
    contents = "".join(f"- [`{path}`](#{_anchor(path)})\n" for path, _ in parts if path.count(".") < CONTENTS_DEPTH)
    metadata = f"## metadata\n\n| field | type | meaning |\n|---|---|---|\n| **`metadata.name`** | {_type(name)} | " \
               "Name of the job; its children append to it. |\n\n"  # fmt: skip
    return HEAD + contents + "\n" + MUTABILITY + metadata + "".join(text for _, text in parts).rstrip() + "\n"


def _parts(path: str, schema: Schema, title: str, models: dict[str, Schema]) -> Iterator[tuple[str, str]]:
    """A section for an object, and then for every object below it."""
    source = _resolved(models[title], models)
    yield path, _section(path, schema, source, models)
    for name, child in schema["properties"].items():
        here, inner = _inner(f"{path}.{name}", child)
        if "properties" in inner:
            model = _model(source, name, models)
            if "oneOf" in model:
                yield here, _union(here, inner, model, models)
            else:
                yield from _parts(here, inner, model["title"], models)


def _inner(path: str, schema: Schema) -> tuple[str, Schema]:
    return (f"{path}[]", schema["items"]) if "items" in schema else (path, schema)


def _section(path: str, schema: Schema, source: Schema, models: dict[str, Schema]) -> str:
    rows = [_row(path, name, child, schema, source) for name, child in schema["properties"].items()]
    about = _about(source)
    return f"## {path}\n\n{about}{_table(rows)}{_rules(schema)}\n"


def _about(source: Schema) -> str:
    return f"{' '.join(source.get('description', '').split())}\n\n"


def _row(path: str, name: str, child: Schema, schema: Schema, source: Schema) -> tuple[str, ...]:
    where = f"`{path}.{name}`"
    if name in schema.get("required", ()):
        where = f"**{where}**"
    default = source.get("properties", {}).get(name, {}).get("default")
    here, inner = _inner(f"{path}.{name}", child)
    meaning = " ".join(child["description"].split())
    if "properties" in inner:
        meaning += f" See [`{here}`](#{_anchor(here)})."
    return where, _type(child), _shown(default), meaning.replace("|", "\\|")


def _union(path: str, schema: Schema, union: Schema, models: dict[str, Schema]) -> str:
    """A section whose fields depend on `type`: a table of all types, then the fields of each."""
    members = [_resolved(option, models) for option in union["oneOf"]]
    text = f"## {path}\n\n{_table([(f'**`{path}.type`**', _type(schema['properties']['type']), '', 'Which one.')])}\n"
    rows = [(f"`{_tag(it)}`", " ".join(it["description"].split()).replace("|", "\\|")) for it in members]
    text += "| type | what it does |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows) + "\n"
    for member in members:
        fields = [name for name in member["properties"] if name != "type"]
        flattened = {"properties": schema["properties"], "required": member.get("required", [])}
        table = _table([_row(path, name, schema["properties"][name] | _described(member, name), flattened, member)
                        for name in fields])  # fmt: skip
        text += f"### {path}: {_tag(member)}\n\n{_about(member)}{table}{_rules(member)}\n"
    return text


def _described(member: Schema, name: str) -> Schema:
    field = member["properties"][name]
    return {"description": field["description"]} if "description" in field else {}


def _table(rows: list[tuple[str, ...]]) -> str:
    return "| field | type | default | meaning |\n|---|---|---|---|\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in rows
    )


def _rules(schema: Schema) -> str:
    """The cross-field rules, those that say "not yet supported" last."""
    messages = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    messages = sorted(dict.fromkeys(messages), key=lambda message: message.startswith("not yet"))
    return "\nRules:\n" + "".join(f"- {message}.\n" for message in messages) if messages else ""


def _type(schema: Schema) -> str:
    """Type and bounds in words."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity, e.g. `8`, `500m` or `32Gi`"
    kind = schema["type"]
    if kind == "array":
        least = f"{schema['minItems']} to " if "minItems" in schema else "at most "
        return f"list, {least}{schema['maxItems']}, of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map, at most {schema['maxProperties']}, of {_type(schema['additionalProperties'])}"
    if kind in ("integer", "number"):
        return f"{kind}{_interval(schema)}"
    if kind == "string":
        pattern = schema.get("pattern", "")
        named = describe_pattern(pattern) or schema.get("format", "")
        form = f"`{pattern}`".replace("|", "\\|") if pattern and named == pattern else named
        length = f"at most {schema['maxLength']} characters" if "maxLength" in schema else ""
        return ", ".join(filter(None, ("string", form, length)))
    return {"object": "object"}.get(kind, str(kind))


def _interval(schema: Schema) -> str:
    if "minimum" not in schema and "maximum" not in schema:
        return ""
    low = "(" if schema.get("exclusiveMinimum") else "["
    high = ")" if schema.get("exclusiveMaximum") else "]"
    start, end = (_number(schema[edge]) if edge in schema else "…" for edge in ("minimum", "maximum"))
    return f" in {low}{start}, {end}{high}"


def _number(value: float) -> str:
    return f"{value:,}".removesuffix(".0").replace(",", "\u202f")


def _shown(default: Any) -> str:
    if default in (None, [], {}) or isinstance(default, dict):
        return ""
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"


def _model(source: Schema, name: str, models: dict[str, Schema]) -> Schema:
    return _resolved(source["properties"][name], models)


def _resolved(schema: Schema, models: dict[str, Schema]) -> Schema:
    """The object or union behind references, lists and `| None`."""
    if "$ref" in schema:
        return _resolved(models[schema["$ref"].rsplit("/", 1)[-1]], models)
    if "anyOf" in schema:
        return _resolved(next(option for option in schema["anyOf"] if option.get("type") != "null"), models)
    return _resolved(schema["items"], models) if "items" in schema else schema


def _tag(member: Schema) -> str:
    return str(member["properties"]["type"]["const"])


def _anchor(path: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "-_")


def main() -> None:
    """Write the page to the file named on the command line."""
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
