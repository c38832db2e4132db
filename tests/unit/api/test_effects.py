"""Each field of the spec is classified by its effect on a run, which decides whether a run resumes."""

import re

import pytest

from finetune_api.effects import FIELD_EFFECTS, Effect, effect_of, flatten, hash_fields
from finetune_api.field_paths import schema_paths


def leaves() -> set[str]:
    """The fields of the spec that have no fields below them, relative to the spec."""
    paths = {path.removeprefix("spec.") for path in schema_paths() if path.startswith("spec.")}
    return {path for path in paths if not any(re.match(rf"{re.escape(path)}(\[\])?\.", other) for other in paths)}


def test_every_field_is_classified() -> None:
    missing = {path for path in leaves() if path not in FIELD_EFFECTS and path.split(".")[0] != "runtime"}
    assert not missing, f"add these fields to FIELD_EFFECTS in finetune_api/effects.py: {sorted(missing)}"


def test_every_classified_field_exists() -> None:
    unknown = FIELD_EFFECTS.keys() - leaves() - {"runtime"}
    assert not unknown, f"these fields do not exist: {sorted(unknown)}"


@pytest.mark.parametrize(
    ("path", "effect"),
    [
        ("modules[1].optimizer.learningRate", Effect.RESULT),
        ("modules[0].parameters[3]", Effect.RESULT),
        ("modules[0].schedule[1].milestones[0]", Effect.RESULT),
        ("training.epochs", Effect.RESULT),
        ("training.microBatchSize", Effect.RESULT),
        ("training.batchSize", Effect.POSITION),
        ("training.seed", Effect.POSITION),
        ("data.fold.index", Effect.POSITION),
        ("data.workers", Effect.NEITHER),
        ("runtime.env[0].value", Effect.NEITHER),
        ("checkpoint.everySeconds", Effect.NEITHER),
        ("a.field.of.another.version", Effect.RESULT),
    ],
)
def test_effects(path: str, effect: Effect) -> None:
    assert effect_of(path) is effect


def test_hash_covers_the_fields_with_an_effect() -> None:
    spec = {"training": {"seed": 0}, "data": {"workers": 2}, "modules": [{"parameters": ["*"]}]}
    changed = [
        {**spec, "data": {"workers": 8}},
        {**spec, "training": {"seed": 1}},
        {**spec, "modules": [{"parameters": ["*", "a"]}]},
    ]
    hashes = [hash_fields(it, Effect.RESULT) == hash_fields(spec, Effect.RESULT) for it in changed]
    assert hashes == [True, True, False]
    hashes = [hash_fields(it, Effect.POSITION) == hash_fields(spec, Effect.POSITION) for it in changed]
    assert hashes == [True, False, True]


def test_flatten_gives_leaves_with_paths() -> None:
    assert dict(flatten({"a": {"b": [1, {"c": 2}]}, "d": None})) == {"a.b[0]": 1, "a.b[1].c": 2, "d": None}
