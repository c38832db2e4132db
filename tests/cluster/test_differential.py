"""A real API server accepts exactly the specs that `finetune validate` accepts, over the whole language.

More than 10,000 generated jobs, whole ones and ones broken in one place each; both sides have to name the place.
Null is a field left out, on either side; and a whole float is sent as kubectl sends it, as an integer.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.specs import NOT_YET, Broken, Language, Path, at
from cluster.test_language import our_refusal, refusal
from harness.api import Api

pytestmark = pytest.mark.cluster

SEED = int(os.environ.get("FINETUNE_TEST_SEED", "1"))
ROUNDS = 3
LANGUAGE = Language()
PLACES = list(LANGUAGE.places())


def test_both_accept_the_same_jobs_and_name_the_same_place(api: Api) -> None:
    rng = random.Random(SEED)
    good = [LANGUAGE.placed(rng, place)[0] for place in PLACES for _ in range(ROUNDS)]
    broken = [found for _ in range(ROUNDS) for place in PLACES for found in LANGUAGE.broken(rng, place)]
    broken += [found for _ in range(ROUNDS) for found in LANGUAGE.broken_at_the_top(rng)]
    assert len(good) + len(broken) > 10_000

    with ThreadPoolExecutor(4) as pool:
        accepted = [body for body, verdicts in zip(good, pool.map(lambda body: judge(api, body), good), strict=True)
                    if agreed(api, body, verdicts)]  # fmt: skip
        for found, verdicts in zip(broken, pool.map(lambda found: judge(api, found.body), broken), strict=True):
            assert_refused_by_name(api, found, verdicts)

    assert_every_place_was_present(accepted)
    assert_every_place_was_broken(broken)


Verdicts = tuple[str | None, str | None]
"""What the API server says, and what validate says; None where it accepts."""


def judge(api: Api, body: dict[str, Any]) -> Verdicts:
    return refusal(api, body), our_refusal(body)


def agreed(api: Api, body: dict[str, Any], verdicts: Verdicts) -> bool:
    """Whether both accept; fails where only one does."""
    theirs, ours = verdicts
    if (theirs is None) != (ours is None):
        small = smallest(body, lambda it: len({verdict is None for verdict in judge(api, it)}) == 2)
        pytest.fail(complaint("they disagree", small, judge(api, small)), pytrace=False)
    return theirs is None


def assert_refused_by_name(api: Api, found: Broken, verdicts: Verdicts) -> None:
    if agreed(api, found.body, verdicts):
        pytest.fail(complaint(f"both accept {found.field}: {found.how}", found.body, verdicts), pytrace=False)
    for verdict in verdicts:
        if found.field not in str(verdict):
            pytest.fail(complaint(f"{found.field} is not named: {found.how}", found.body, verdicts), pytrace=False)


def smallest(body: dict[str, Any], is_bad: Any) -> dict[str, Any]:
    """The body with everything taken out that does not matter."""
    for keys in sorted(paths(body["spec"], ("spec",)), key=len):
        try:
            less = without(body, keys)
        except (LookupError, TypeError):
            continue
        if is_bad(less):
            body = less
    return body


def without(body: Any, keys: tuple[Any, ...]) -> Any:
    at(body, keys)
    less = json.loads(json.dumps(body))
    del at(less, keys[:-1])[keys[-1]]
    return less


def paths(node: Any, here: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = (
        node.items() if isinstance(node, dict) else reversed(list(enumerate(node))) if isinstance(node, list) else ()
    )
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


def complaint(what: str, body: dict[str, Any], verdicts: Verdicts) -> str:
    shown = json.dumps(body["spec"], ensure_ascii=False)
    theirs, ours = (str(verdict)[:600] for verdict in verdicts)
    return f"seed {SEED}: {what}\nspec: {shown[:3000]}\nAPI server: {theirs}\nvalidate:   {ours}"


def assert_every_place_was_present(accepted: list[dict[str, Any]]) -> None:
    present = {place for body in accepted for place in LANGUAGE.present(body["spec"])}
    absent = {".".join(place) for place in PLACES} - {".".join(place) for place in present}
    assert {place for place in absent if not place.startswith(NOT_YET)} == set()
    assert all(any(place.startswith(name) for place in absent) for name in NOT_YET), (
        "supported now: take it off NOT_YET"
    )


WAYS = {
    "string": {"boolean", "whole number", "list", "mapping", "too long"},
    "integer": {"text", "number as text", "boolean", "list", "mapping", "too small", "too large", "fraction"},
    "number": {"text", "number as text", "boolean", "list", "mapping", "too small", "too large"},
    "boolean": {"text", "whole number", "list", "mapping"},
    "array": {"text", "boolean", "whole number", "mapping", "list too long"},
    "object": {"text", "boolean", "whole number", "list"},
}


def assert_every_place_was_broken(broken: list[Broken]) -> None:
    ways: dict[Path, set[str]] = defaultdict(set)
    for found in broken:
        ways[found.where].add(found.how)
    for place in PLACES:
        schema = LANGUAGE.schema(place)
        expected = set() if place[-1].startswith("<") else {*WAYS.get(schema.get("type", ""), ())}
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
        if place[-1] not in ("[]", "{}") and not place[-1].startswith("<"):
            expected |= {"unknown neighbour"}
            if place[-1] in LANGUAGE.schema(place[:-1]).get("required", ()):
                expected |= {"missing", "null"}
        if "properties" in schema:
            expected |= {rule.message for rule in LANGUAGE.model(schema).rules}
        assert expected <= ways[place], f"{'.'.join(place)} was not broken: {expected - ways[place]}"
    assert all(rule.message in {found.how for found in broken} for rule in LANGUAGE.models["JobSpec"].rules)
