"""The spec may change until the first attempt; after it three fields only, be it set, changed or taken away."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from cluster.operated import Api
from cluster.specs import DELETE, Language, Path, at, replaced
from cluster.test_language import JOBS
from finetune_api.job import ALWAYS_MUTABLE, parse

pytestmark = pytest.mark.cluster

LANGUAGE = Language()
PLACES = [place for place in LANGUAGE.places() if not place[-1].startswith(("<", "[", "{"))]
NUMBERS = itertools.count()


class Change(NamedTuple):
    """One field of a good job, set, changed or taken away."""

    place: Path
    before: dict[str, Any]
    after: dict[str, Any]


def changes() -> Iterator[Change]:
    rng = random.Random(1)
    for place in PLACES:
        found = (of_one_job(rng, place) for _ in range(20))
        yield from next(filter(None, found), [])


def of_one_job(rng: random.Random, place: Path) -> list[Change]:
    """The changes of a field from a good job to a good job."""
    body, keys = LANGUAGE.placed(rng, place)
    absent = replaced(body, keys, DELETE)
    other = replaced(body, keys, another(rng, place, at(body, keys)))
    pairs = ((body, absent), (absent, body), (body, other))
    return [
        Change(place, before, after)
        for before, after in pairs
        if before != after and is_good(before) and is_good(after)
    ]


def another(rng: random.Random, place: Path, value: Any) -> Any:
    found = (LANGUAGE.good(rng, LANGUAGE.schema(place)) for _ in range(50))
    return next((other for other in found if other != value), value)


def is_good(body: dict[str, Any]) -> bool:
    try:
        parse(body)
    except ValidationError:
        return False
    return True


def verdicts(api: Api, change: Change) -> tuple[str, str]:
    """What the API server says of the change before the first attempt, and after it; empty where it takes it."""
    name = f"changing-{next(NUMBERS)}"
    created = api.post(JOBS, change.before | {"metadata": {"name": name}})
    assert created.is_success, created.text
    early = update(api, created.json() | {"spec": change.after["spec"]})
    started = api.patch(f"{JOBS}/{name}/status", {"status": {"attempt": 1}})
    late = update(api, started | {"spec": change.after["spec"]})
    api.delete(f"{JOBS}/{name}")
    return early, late


def update(api: Api, body: dict[str, Any]) -> str:
    path = f"{JOBS}/{body['metadata']['name']}"
    response = api._client.put(path, json=body, params={"dryRun": "All", "fieldValidation": "Strict"})
    return "" if response.is_success else str(response.json()["message"])


def test_each_field_may_change_until_the_first_attempt_and_three_after(api: Api) -> None:
    every = list(changes())
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda change: verdicts(api, change), every))
    for change, (early, late) in zip(every, told, strict=True):
        top = change.place[0]
        where = f"{'.'.join(change.place)}: {json.dumps(change.before['spec'])} -> {json.dumps(change.after['spec'])}"
        assert early == "", where
        if top in ALWAYS_MUTABLE:
            assert late == "", where
        else:
            assert f"spec.{top} is immutable" in late, where
    tried = {change.place for change in every}
    alone = {place for place in PLACES if len(place) == 1} - {("entrypoint",)}
    assert alone <= tried
    assert len(tried) > 200
