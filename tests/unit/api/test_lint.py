"""API conventions that the generated CRD follows: a subset of the rules of kube-api-linter, as Kueue configures it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from finetune_api.crd import job_crd, to_yaml

Schema = dict[str, Any]
CRD = job_crd()
VERSION = CRD["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]

# Deliberate exceptions:
# - `nofloats`: learning rates such as 2e-5 are floats, and kubectl, Helm, Argo CD and Flux all read them as numbers.
# - `nobools`: `frozen: true` has no third state; fields that may get one are enums.
# - `nomaps`: labels are maps everywhere in Kubernetes.


def walk(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


SPEC = list(walk(ROOT["properties"]["spec"], "spec"))
STATUS = list(walk(ROOT["properties"]["status"], "status"))
BOTH = SPEC + STATUS
FIELDS = [(path, schema) for path, schema in BOTH if not path.endswith(("[]", "{}"))]


def of_type(kind: str, nodes: list[tuple[str, Schema]]) -> list[tuple[str, Schema]]:
    return [(path, schema) for path, schema in nodes if schema.get("type") == kind]


def test_strings_are_bounded() -> None:
    for path, schema in of_type("string", BOTH):
        assert schema.keys() & {"maxLength", "enum", "format"}, path


def test_lists_and_maps_are_bounded() -> None:
    for path, schema in of_type("array", BOTH):
        assert "maxItems" in schema, path
    for path, schema in BOTH:
        assert "additionalProperties" not in schema or "maxProperties" in schema, path


def test_numbers_are_bounded() -> None:
    for path, schema in of_type("integer", BOTH) + of_type("number", SPEC):
        assert {"minimum", "maximum"} <= schema.keys(), path
    for path, schema in SPEC:
        if schema.get("x-kubernetes-int-or-string"):
            assert {"minimum", "maximum", "maxLength", "pattern"} <= schema.keys(), path


def test_every_field_has_a_description() -> None:
    for path, schema in FIELDS:
        description = schema.get("description", "")
        assert re.match(r"[A-Z`0-9]", description), f"{path}: {description!r} does not start like a sentence"
        assert description.endswith("."), f"{path}: {description!r} does not end with a period"


def test_no_nullable_or_untyped_fields() -> None:
    for path, schema in BOTH:
        assert "nullable" not in schema, path
        assert "x-kubernetes-preserve-unknown-fields" not in schema, path
        assert "type" in schema or "x-kubernetes-int-or-string" in schema, path
        assert schema.get("type") != "object" or schema.keys() & {"properties", "additionalProperties"}, path


def test_names_follow_api_conventions() -> None:
    for path, _ in FIELDS:
        name = path.rpartition(".")[2]
        assert re.fullmatch(r"[a-z][a-zA-Z0-9]*", name), f"{path} is not camelCase"
        assert name != "phase", path
        assert not re.search(r"(Duration|Timeout|Minutes|Millis|Ms|Interval)$", name), f"{path} must end with Seconds"
    for path, _ in SPEC:
        assert "namespace" not in path.lower(), f"{path}: references must not cross namespaces"


def test_lists_of_named_objects_are_maps_by_name() -> None:
    for path, schema in of_type("array", BOTH):
        properties = schema["items"].get("properties", {})
        keys = [key for key in ("name", "type", "mountPath") if key in schema["items"].get("required", ())]
        if "name" in keys and path.startswith("spec"):
            assert schema.get("x-kubernetes-list-map-keys") == ["name"], path
        assert set(schema.get("x-kubernetes-list-map-keys", ())) <= set(properties), path


def test_status_follows_kstatus() -> None:
    status = ROOT["properties"]["status"]
    conditions = status["properties"]["conditions"]
    assert VERSION["subresources"] == {"status": {}}
    assert status["default"] == {"observedGeneration": -1}
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert {"type", "status", "reason", "lastTransitionTime"} <= set(conditions["items"]["required"])


def test_every_rule_has_a_message_and_a_field_path() -> None:
    for path, schema in [*BOTH, ("", ROOT)]:
        for rule in schema.get("x-kubernetes-validations", ()):
            assert rule["message"], path
            assert "fieldPath" in rule or "additionalProperties" in schema, f"{path}: {rule['message']}"


def test_crd_is_smaller_than_200_kib() -> None:
    assert len(to_yaml(CRD).encode()) < 200 * 1024
