"""The spec is mutable until the first attempt; afterwards only three fields may be added, changed or removed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from cluster.framework import Api
from cluster.specs import DELETE, SchemaPath, SpecGenerator, get, with_value
from cluster.test_schema_validation import JOBS
from finetune_api.job import ALWAYS_MUTABLE, parse

pytestmark = pytest.mark.cluster

GENERATOR = SpecGenerator()
PATHS = [path for path in GENERATOR.paths() if not path[-1].startswith(("<", "[", "{"))]
NUMBERS = itertools.count()


class Update(NamedTuple):
    """One field of a valid job that is added, changed or removed."""

    path: SchemaPath
    before: dict[str, Any]
    after: dict[str, Any]


def updates() -> Iterator[Update]:
    rng = random.Random(1)
    for path in PATHS:
        candidates = (updates_of_one_job(rng, path) for _ in range(20))
        yield from next(filter(None, candidates), [])


def updates_of_one_job(rng: random.Random, path: SchemaPath) -> list[Update]:
    """The updates of one field for which the job is valid before and after."""
    manifest, keys = GENERATOR.valid_job(rng, path)
    unset = with_value(manifest, keys, DELETE)
    changed = with_value(manifest, keys, other_value(rng, path, get(manifest, keys)))
    return [
        Update(path, before, after)
        for before, after in ((manifest, unset), (unset, manifest), (manifest, changed))
        if before != after and is_valid(before) and is_valid(after)
    ]


def other_value(rng: random.Random, path: SchemaPath, value: Any) -> Any:
    candidates = (GENERATOR.valid(rng, GENERATOR.schema(path)) for _ in range(50))
    return next((candidate for candidate in candidates if candidate != value), value)


def is_valid(manifest: dict[str, Any]) -> bool:
    try:
        parse(manifest)
    except ValidationError:
        return False
    return True


def errors_of(api: Api, update: Update) -> tuple[str, str]:
    """The API server's errors for the update before and after the first attempt; empty if it accepts it."""
    name = f"updated-{next(NUMBERS)}"
    created = api.post(JOBS, update.before | {"metadata": {"name": name}})
    assert created.is_success, created.text
    before_attempt = replace(api, created.json() | {"spec": update.after["spec"]})
    started = api.patch(f"{JOBS}/{name}/status", {"status": {"attempt": 1}})
    after_attempt = replace(api, started | {"spec": update.after["spec"]})
    api.delete(f"{JOBS}/{name}")
    return before_attempt, after_attempt


def replace(api: Api, manifest: dict[str, Any]) -> str:
    path = f"{JOBS}/{manifest['metadata']['name']}"
    response = api._client.put(path, json=manifest, params={"dryRun": "All", "fieldValidation": "Strict"})
    return "" if response.is_success else str(response.json()["message"])


def test_spec_is_immutable_after_the_first_attempt_except_three_fields(api: Api) -> None:
    tried = list(updates())
    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda update: errors_of(api, update), tried))
    for update, (before_attempt, after_attempt) in zip(tried, errors, strict=True):
        field = update.path[0]
        change = f"{'.'.join(update.path)}: {json.dumps(update.before['spec'])} -> {json.dumps(update.after['spec'])}"
        assert before_attempt == "", change
        if field in ALWAYS_MUTABLE:
            assert after_attempt == "", change
        else:
            assert f"spec.{field} is immutable" in after_attempt, change
    updated = {update.path for update in tried}
    top_level = {path for path in PATHS if len(path) == 1} - {("entrypoint",)}
    assert top_level <= updated
    assert len(updated) > 200
