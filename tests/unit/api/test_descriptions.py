"""Descriptions in the CRD, as `kubectl explain` prints them: complete, with correct defaults, in plain English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from finetune_api.crd import job_crd
from finetune_api.defaults import DEFAULT_EPOCHS, DEFAULT_METRIC, DEFAULT_MODULES
from finetune_api.descriptions import explicit_default, format_default, merge_descriptions
from finetune_api.job import FineTuneJob
from finetune_api.structural_schema import to_structural

Schema = dict[str, Any]
ROOT = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
MODELS = FineTuneJob.model_json_schema(by_alias=True)["$defs"]

IF_UNSET = re.compile(r"Defaults to |If not set, |If neither |Mutually exclusive with |Required |Set if and only if |"
                      r"If the operator is ")  # fmt: skip
PRIVATE_WORDS = re.compile(
    r"\b(so many|of which|thaw\w*|mend\w*|told|tells?|says?|speaks?|nobody|whoever|a person|go(es)? on|the hub|judged?|"
    r"the language|beside|left out|had better|lies|picture|initialis\w*)\b",
    re.IGNORECASE,
)


class Field(NamedTuple):
    """A field in the CRD; in a union, once per type that has it. `model` is the JSON schema of its object."""

    path: str
    name: str
    description: str
    model: Schema
    type: str | None
    types: tuple[str, ...]

    @property
    def is_required(self) -> bool:
        return self.name in self.model.get("required", ())

    @property
    def default(self) -> Any:
        source = self.model["properties"][self.name]
        return explicit_default({"default": source.get("default"), "properties": resolve(source).get("properties")})


def resolve(schema: Schema) -> Schema:
    """The object or union behind references, lists and `| None`."""
    if "$ref" in schema:
        return resolve(MODELS[schema["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in schema:
        return resolve(next(option for option in schema["anyOf"] if option.get("type") != "null"))
    return resolve(schema["items"]) if "items" in schema else schema


def fields(path: str, schema: Schema, model: Schema) -> Iterator[Field]:
    if "oneOf" in model:
        members = {it["properties"]["type"]["const"]: it for it in (resolve(option) for option in model["oneOf"])}
    else:
        members = {None: model}
    for tag, member in members.items():
        for name in member["properties"]:
            if tag is None or name != "type":
                child = schema["properties"][name]
                description = child.get("description", "")
                yield Field(f"{path}.{name}", name, description, member, tag, tuple(filter(None, members)))
                child = child.get("items", child)
                if "properties" in child:
                    yield from fields(f"{path}.{name}", child, resolve(member["properties"][name]))


SPEC = list(fields("spec", ROOT["spec"], MODELS["JobSpec"]))
STATUS = list(fields("status", ROOT["status"], MODELS["JobStatus"]))


def own_text(field: Field) -> str:
    """The description; for a field of a union, the part of it that is about the type of the field."""
    tag = f"(?:{'|'.join(field.types)})"
    _, *parts = re.split(rf"(?:^|(?<=\. ))({tag}(?:, {tag})*): ", field.description) if field.type else [""]
    texts = (text for tags, text in zip(parts[::2], parts[1::2], strict=True) if field.type in tags.split(", "))
    return next(texts, field.description)


def stated_default(field: Field) -> Any:
    """The default in the description of a field, parsed as YAML; None if it states none."""
    text = own_text(field)
    stated = re.search(rf"(\S+) \([^)]*\b{field.type}\b[^)]*\)", text) or re.search(
        r"Defaults to (\{.*?\}|\S+)\.(?: |$)", text
    )
    return YAML(typ="safe", pure=True).load(stated[1]) if stated else None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-8, "1e-8"),
        (0.95, "0.95"),
        (3.0, "3"),
        (10_000, "10000"),
        (False, "false"),
        ("", '""'),
        ({"epochs": 1.0}, "{epochs: 1}"),
    ],
)
def test_format_value(value: Any, text: str) -> None:
    assert format_default(value) == text


def test_every_description_is_a_sentence() -> None:
    assert len(SPEC) > 200
    for field in SPEC + STATUS:
        assert re.fullmatch(r"[A-Z`0-9].*\.", field.description), f"{field.path}: {field.description!r}"


def test_descriptions_have_no_private_vocabulary() -> None:
    for field in SPEC + STATUS:
        assert not PRIVATE_WORDS.search(field.description), f"{field.path}: {field.description!r}"


def test_descriptions_state_the_defaults_of_the_models() -> None:
    for field in SPEC:
        if field.default is not None:
            assert stated_default(field) == field.default, f"{field.path} ({field.type}): {field.description!r}"


def test_descriptions_say_what_happens_if_a_field_without_default_is_unset() -> None:
    for field in SPEC:
        if not field.is_required and field.model["properties"][field.name].get("default") is None:
            assert IF_UNSET.search(own_text(field)), f"{field.path} ({field.type}): {field.description!r}"


def test_descriptions_name_the_types_that_require_a_field() -> None:
    for field in SPEC:
        requiring = {other.type for other in SPEC if other.path == field.path and other.is_required}
        if field.is_required and field.type and requiring != set(field.types):
            required = re.search(rf"Required(\.| \([^)]*\b{field.type}\b)", own_text(field))
            assert required, f"{field.path} ({field.type}): {field.description!r}"


def test_descriptions_state_the_defaults_of_effective_jobs() -> None:
    spec = ROOT["spec"]["properties"]
    metric = spec["evaluation"]["properties"]["metric"]["description"]
    assert all(f"`{default}`" in metric and task in metric for task, default in DEFAULT_METRIC.items())
    assert f"Defaults to {format_default(DEFAULT_EPOCHS)}" in spec["training"]["properties"]["epochs"]["description"]
    rate = DEFAULT_MODULES[0]["optimizer"]["learningRate"]
    assert f"a learning rate of {format_default(rate)}" in spec["modules"]["description"]
    for name, column in spec["data"]["properties"]["columns"]["properties"].items():
        assert column["description"].endswith(f" Defaults to {name}.")


@pytest.mark.parametrize(("part", "split"), [("train", "train"), ("validation", "validation"), ("test", "test")])
def test_description_of_the_default_split(part: str, split: str) -> None:
    description = ROOT["spec"]["properties"]["data"]["properties"][part]["properties"]["split"]["description"]
    assert f"Defaults to {split}, " in description


def member(tag: str, description: str, default: float | None = None, *, required: bool = False) -> Schema:
    rate: Schema = {"description": description} | ({} if default is None else {"default": default})
    return {"properties": {"type": {"enum": [tag]}, "rate": rate}, "required": ["rate"] if required else []}


def test_all_descriptions_of_a_field_of_a_union_are_kept() -> None:
    members = {"A": member("A", "Rate.", 0.5), "B": member("B", "Rate.", 1e-8), "C": member("C", "LR.", required=True)}
    merged = merge_descriptions("rate", members)
    assert merged == "A, B: rate. Defaults to 0.5 (A) or 1e-8 (B). C: LR. Required."


def test_a_field_of_all_members_has_no_types_in_its_description() -> None:
    members = {"A": member("A", "Rate.", 0.5), "B": member("B", "Rate.", 0.5)}
    assert merge_descriptions("rate", members) == "Rate. Defaults to 0.5."


def test_members_of_a_union_must_agree_on_the_constraints_of_a_field() -> None:
    def option(tag: str, maximum: int) -> Schema:
        rate = {"type": "integer", "maximum": maximum, "description": "Rate."}
        properties = {"type": {"const": tag, "type": "string"}, "rate": rate}
        return {"type": "object", "description": "Member.", "properties": properties}

    with pytest.raises(TypeError, match="rate does not have the same constraints in A, B"):
        to_structural({"oneOf": [option("A", 1), option("B", 2)]}, {})
