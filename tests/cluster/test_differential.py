"""A real API server accepts exactly the jobs that `finetune validate` accepts, for every field of the API.

More than 10,000 generated jobs: valid ones, and invalid ones with one mistake each, which both must report for the same
field. Both treat null as unset, and an integral float is sent the way kubectl sends it, as an integer.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.specs import UNSUPPORTED, InvalidJob, SchemaPath, SpecGenerator, get
from cluster.test_schema_validation import our_error, server_error
from harness.api import Api

pytestmark = pytest.mark.cluster

SEED = int(os.environ.get("FINETUNE_TEST_SEED", "1"))
ROUNDS = 3
GENERATOR = SpecGenerator()
PATHS = list(GENERATOR.paths())

Errors = tuple[str | None, str | None]
"""The error messages of the API server and of `finetune validate`; None for a job that is accepted."""


def test_both_accept_the_same_jobs_and_report_the_same_field(api: Api) -> None:
    rng = random.Random(SEED)
    valid = [GENERATOR.valid_job(rng, path)[0] for path in PATHS for _ in range(ROUNDS)]
    invalid = [job for _ in range(ROUNDS) for path in PATHS for job in GENERATOR.invalid_jobs(rng, path)]
    invalid += [job for _ in range(ROUNDS) for job in GENERATOR.spec_rule_violations(rng)]
    assert len(valid) + len(invalid) > 10_000

    with ThreadPoolExecutor(4) as pool:
        errors_of_valid = pool.map(lambda manifest: validate(api, manifest), valid)
        accepted = [job for job, errors in zip(valid, errors_of_valid, strict=True) if is_accepted(api, job, errors)]
        errors_of_invalid = pool.map(lambda job: validate(api, job.manifest), invalid)
        for job, errors in zip(invalid, errors_of_invalid, strict=True):
            assert_rejected(api, job, errors)

    assert_every_field_was_set(accepted)
    assert_every_mistake_was_tried(invalid)


def validate(api: Api, manifest: dict[str, Any]) -> Errors:
    return server_error(api, manifest), our_error(manifest)


def is_accepted(api: Api, manifest: dict[str, Any], errors: Errors) -> bool:
    """Whether both accept the job; fails with a minimal example if only one does."""
    server, ours = errors
    if (server is None) != (ours is None):
        small = minimize(manifest, lambda it: len({error is None for error in validate(api, it)}) == 2)
        pytest.fail(report("only one accepts the job", small, validate(api, small)), pytrace=False)
    return server is None


def assert_rejected(api: Api, job: InvalidJob, errors: Errors) -> None:
    if is_accepted(api, job.manifest, errors):
        pytest.fail(report(f"both accept {job.field}: {job.mistake}", job.manifest, errors), pytrace=False)
    for error in errors:
        if job.field not in str(error):
            pytest.fail(report(f"{job.field} is not named: {job.mistake}", job.manifest, errors), pytrace=False)


def minimize(manifest: dict[str, Any], still_fails: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The manifest without any field that can be removed while the failure persists."""
    for keys in sorted(key_paths(manifest["spec"], ("spec",)), key=len):
        try:
            smaller = without(manifest, keys)
        except (LookupError, TypeError):
            continue
        if still_fails(smaller):
            manifest = smaller
    return manifest


def without(manifest: Any, keys: tuple[Any, ...]) -> Any:
    get(manifest, keys)
    smaller = json.loads(json.dumps(manifest))
    del get(smaller, keys[:-1])[keys[-1]]
    return smaller


def key_paths(node: Any, prefix: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = (
        node.items() if isinstance(node, dict) else reversed(list(enumerate(node))) if isinstance(node, list) else ()
    )
    for key, value in items:
        yield (*prefix, key)
        yield from key_paths(value, (*prefix, key))


def report(problem: str, manifest: dict[str, Any], errors: Errors) -> str:
    spec = json.dumps(manifest["spec"], ensure_ascii=False)
    server, ours = (str(error)[:600] for error in errors)
    return f"seed {SEED}: {problem}\nspec: {spec[:3000]}\nAPI server: {server}\nvalidate:   {ours}"


def assert_every_field_was_set(accepted: list[dict[str, Any]]) -> None:
    present = {path for manifest in accepted for path in GENERATOR.present(manifest["spec"])}
    absent = {".".join(path) for path in PATHS} - {".".join(path) for path in present}
    assert {path for path in absent if not path.startswith(UNSUPPORTED)} == set()
    assert all(any(path.startswith(name) for path in absent) for name in UNSUPPORTED), (
        "supported now: remove it from UNSUPPORTED"
    )


MISTAKES = {
    "string": {"boolean", "integer", "list", "mapping", "too long"},
    "integer": {"string", "number as string", "boolean", "list", "mapping", "too small", "too large", "fraction"},
    "number": {"string", "number as string", "boolean", "list", "mapping", "too small", "too large"},
    "boolean": {"string", "integer", "list", "mapping"},
    "array": {"string", "boolean", "integer", "mapping", "list too long"},
    "object": {"string", "boolean", "integer", "list"},
}


def assert_every_mistake_was_tried(invalid: list[InvalidJob]) -> None:
    tried: dict[SchemaPath, set[str]] = defaultdict(set)
    for job in invalid:
        tried[job.path].add(job.mistake)
    for path in PATHS:
        schema = GENERATOR.schema(path)
        expected = set() if path[-1].startswith("<") else {*MISTAKES.get(schema.get("type", ""), ())}
        if "enum" in schema or "const" in schema:
            expected -= {"too long"}
        if "enum" in schema:
            expected |= {"unknown value"}
        if "pattern" in schema:
            expected |= {"pattern", "newline"}
        if schema.get("minLength"):
            expected |= {"empty"}
        if "x-kubernetes-list-map-keys" in schema:
            expected |= {"duplicate"}
        if path[-1] not in ("[]", "{}") and not path[-1].startswith("<"):
            expected |= {"unknown sibling"}
            if path[-1] in GENERATOR.schema(path[:-1]).get("required", ()):
                expected |= {"missing", "null"}
        if "properties" in schema:
            expected |= {rule.message for rule in GENERATOR.model(schema).rules}
        assert expected <= tried[path], f"not tried for {'.'.join(path)}: {expected - tried[path]}"
    assert all(rule.message in {job.mistake for job in invalid} for rule in GENERATOR.models["JobSpec"].rules)
